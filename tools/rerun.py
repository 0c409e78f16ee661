"""Run what failed in the suite once more, alone and in one process: .ci/run's second try.

    python -m tools.rerun failures.json       # written by `make test PYTEST=--failures=failures.json`

At most two tests get one, and none of those that must never fail by chance. A test that passes now is a fault
like any other, whose cause is to be found: it is printed under FLAKY with its first failure. Exit status 0 if
every one passed.
"""

import json
import subprocess
import sys
from pathlib import Path

MOST = 2
NEVER = ("tests/run/", "tests/checkpoint/", "tests/training/test_guard.py", "tests/attention/")


def refusal(failures: dict[str, str]) -> str | None:
    """Why these failures get no second try; None if they do."""
    if not failures:
        return "the suite failed without a failed test"
    if len(failures) > MOST:
        return f"{len(failures)} tests failed, at most {MOST} get a second try"
    for name in failures:
        if name.startswith(NEVER):
            return f"{name} gets no second try: it must not fail by chance"
    return None


def main(arguments: list[str]) -> int:
    text = Path(arguments[0]).read_text()
    failures: dict[str, str] = json.loads(text) if text else {}
    if why := refusal(failures):
        print(f"\nNo second try: {why}")
        return 1
    again = [sys.executable, "-m", "pytest", "--numprocesses", "0", *failures]
    if subprocess.run(again).returncode:
        return 1
    print("\nFLAKY: failed in the suite, passed alone. Find the cause before anything else:")
    for name, failure in failures.items():
        print(f"\n{name}\n{failure}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
