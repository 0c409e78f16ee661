"""What the default lane asks of its tests: a budget of CPU time each, and a list of what was slow or failed.

``--failures FILE`` writes what failed as JSON: node id to the last lines of why. ``--record FILE`` appends a
line about the run to a JSON file: commit, order, time, result, and how many cores others used.
"""

import json
import os
import subprocess
import time
from collections.abc import Generator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from phd.run.files import read_json, write_json

CPU_BUDGET_S = 60
"""Three times what a test should take: the same call has taken 16 and 30 seconds on one machine."""
SLOWEST = 30
UNLIMITED = ("slow", "slurm", "gpu", "vllm")
type Clocks = tuple[float, float, float]
BEGIN, END = pytest.StashKey[Clocks](), pytest.StashKey[Clocks]()
LINUX = Path("/proc/self/stat").exists()
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds() -> float:
    """CPU time of this process and all below it, also of those that have ended."""
    times: dict[int, tuple[int, int]] = {}
    for name in os.listdir("/proc"):  # twice a test: no Path, which takes four times as long
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb", buffering=0) as file:
                # the name of the program, the second field, may hold spaces and brackets
                fields = file.read(4096).rpartition(b") ")[2].split()
        except OSError:
            continue  # it has ended
        times[int(name)] = (int(fields[1]), sum(map(int, fields[11:15])))
    total, found = 0, [os.getpid()]
    while found:
        pid = found.pop()
        total += times[pid][1]
        found += [child for child, (parent, _) in times.items() if parent == pid]
    return total / _TICKS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--failures", type=Path, metavar="FILE", help="write what failed, and why, as JSON")
    parser.addoption("--record", type=Path, metavar="FILE", help="append a line about the run, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[BEGIN] = _clocks()


@pytest.hookimpl(tryfirst=True)  # the test processes are still there
def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.stash[END] = _clocks()


def _clocks() -> Clocks:
    """Of the wall, of all that this process has started, of all that the machine has done."""
    if not LINUX:
        return time.monotonic(), time.process_time(), 0.0
    user, nice, system = Path("/proc/stat").read_text().split()[1:4]
    return time.monotonic(), cpu_seconds(), (int(user) + int(nice) + int(system)) / _TICKS


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Without what fixtures take: a world's start belongs to no one test."""
    if not LINUX:
        return (yield)
    before = cpu_seconds()
    result = yield
    spent = cpu_seconds() - before
    item.user_properties.append(("cpu_s", spent))
    limited = not any(item.get_closest_marker(name) for name in UNLIMITED)
    if limited and spent > CPU_BUDGET_S:
        pytest.fail(
            f"{item.nodeid} took {spent:.1f} s of CPU time, a test of the default lane has {CPU_BUDGET_S}: "
            "let it do less, or mark it slow and leave a shorter one in its place",
            pytrace=False,
        )
    return result


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    if hasattr(config, "workerinput"):
        return  # of pytest-xdist: the process that started it has the reports of all
    stats = terminalreporter.stats
    reports = [report for kind in ("passed", "failed") for report in stats.get(kind, [])]
    took: dict[str, float] = {}
    for report in reports:
        took[report.nodeid] = took.get(report.nodeid, 0) + report.duration
    cpu = {report.nodeid: dict(report.user_properties).get("cpu_s", 0.0) for report in reports}
    terminalreporter.section(f"{SLOWEST} slowest of {sum(took.values()):.0f} s")
    terminalreporter.line("wall time with fixtures, CPU time of the call:")
    for name in sorted(took, key=took.__getitem__, reverse=True)[:SLOWEST]:
        terminalreporter.line(f"{took[name]:7.1f} s {cpu[name]:7.1f} s  {name}")
    if file := config.getoption("--failures"):
        failed = [*stats.get("failed", []), *stats.get("error", [])]
        why = {report.nodeid: str(report.longreprtext)[-2000:] for report in failed}
        file.write_text(json.dumps(why, indent=1))
    if file := config.getoption("--record"):
        count = {kind: len(stats.get(kind, [])) for kind in ("passed", "failed", "error", "skipped")}
        _record(file, config, count | {"exit_status": int(exitstatus)})


def _record(file: Path, config: pytest.Config, result: dict[str, int]) -> None:
    begin, end = config.stash[BEGIN], config.stash[END]
    wall, own, machine = (now - then for now, then in zip(end, begin, strict=True))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    report = read_json(file)
    report.setdefault("runs", []).append(
        {
            "commit": commit,
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "arguments": list(config.invocation_params.args),
            "seed": config.getoption("randomly_seed", None),
            "seconds": round(wall),
            "cpu_seconds": round(own),
            "cores": os.cpu_count(),
            "cores_of_others": round((machine - own) / wall, 2),
            **result,
        }
    )
    write_json(file, report)
