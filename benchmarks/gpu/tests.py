"""Every test that is marked gpu."""

import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.piece import ROOT, TAIL, Result, Skipped, keep, main, missing_package, time_left
from benchmarks.gpu.timing import device_of

WORKERS = "4"
DRY = ["-m", "not gpu", "-k", "masked", "tests/attention/kernels/test_kernels.py"]


def run(dry: bool) -> Result:
    """Every test that is marked gpu."""
    device_of(dry)
    for module in ("pytest", "pytest_timeout"):  # pyproject.toml sets a timeout
        if find_spec(module) is None:
            raise Skipped(f"no package {module}")
    selection = DRY if dry else ["-m", "gpu", *gpu_files()]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "junit.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        if find_spec("xdist") is not None and not dry:
            command += ["-n", WORKERS]  # kernels are compiled on the CPU
        command += ["--continue-on-collection-errors", *selection]
        output, late = call_pytest(command)
        if not report.exists():
            if package := missing_package(output):
                raise Skipped(f"no package {package}")
            raise RuntimeError(f"pytest wrote no report: {output[-TAIL:]}")
        result = counts(report)
    keep(**result)
    if late:
        raise TimeoutError("pytest was interrupted: the counts are of the tests before")
    if result["failures"]:
        raise RuntimeError(f"{len(result['failures'])} tests failed: {output[-TAIL:]}")
    if not result["passed"]:
        raise Skipped(f"no test passed: {result['skips']}")
    return result


def gpu_files() -> list[str]:
    """Files with such tests: the others need packages that a machine for measuring may not have."""
    files = (path for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text("utf-8"))
    return sorted(str(path.relative_to(ROOT)) for path in files)


def call_pytest(command: list[str]) -> tuple[str, bool]:
    """What it printed, and whether it was interrupted for the time; it writes its report then too, if it is
    not in the middle of what cannot be interrupted.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        late = False
        try:
            process.wait(min(max(time_left() - 20, 0), 1e6))
        except subprocess.TimeoutExpired:
            late = True
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(18)
            process.kill()
        output.seek(0)
        return output.read(), late


def counts(report: Path) -> Result:
    """Numbers of tests, the names of those that failed, and how often which reason to skip was given.

    A file that cannot be imported for want of a package that is not ours is a skip too.
    """
    number: Counter[str] = Counter({"passed": 0, "failed": 0, "skipped": 0})
    skips: Counter[str] = Counter()
    failures = {}
    for name, kind, text in cases(report):
        package = missing_package(text)
        if kind == "skipped" or (kind == "error" and package):
            number["skipped"] += 1
            skips[f"no package {package}" if package else text.splitlines()[0]] += 1
        elif kind:
            number["failed"] += 1
            # pytest marks the lines of the error itself
            failures[name] = "\n".join(re.findall(r"^E .*", text, re.MULTILINE))[:300] or text[:300]
        else:
            number["passed"] += 1
    return {**number, "failures": failures, "skips": skips}


def cases(report: Path) -> Iterator[tuple[str, str | None, str]]:
    """Name, failure, error, skipped or None, and the reason of each test in a junit file."""
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        bad = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        if bad is None:
            yield name, None, ""
        else:
            yield name, bad.tag, f"{bad.get('message')}\n{bad.text or ''}"


if __name__ == "__main__":
    raise SystemExit(main(run))
