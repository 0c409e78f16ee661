"""A bar for a terminal, whose time left is seen; lines for a log."""

import io
import re

import pytest
from rich.console import Console

from data_tools.progress import byte_progress

NOTE = "12,345,678 documents, 1,234,567,890 tokens, 12.33M tokens/s"


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_narrow_terminal_shows_the_time_left(width):
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=width, color_system=None)
    progress = byte_progress(console)
    now = 0
    progress.get_time = lambda: now
    task = progress.add_task("rank 12 of 64: tokenize", total=10**12, note="")
    for now in range(1, 9):
        progress.update(task, completed=now * 33 * 10**6, note=NOTE)
    console.print(progress.make_tasks_table(progress.tasks))
    assert re.search(r"rank 12 of 64: tokenize +0% 8:24:\d\d +33\.0 MB/s", output.getvalue())
    assert all(len(line) <= width for line in output.getvalue().splitlines())


def lines(seconds, bytes_a_second, capsys, total=10**9):
    """What a log holds when so much time has passed."""
    now = 0
    with byte_progress(Console(file=io.StringIO())) as progress:
        progress.get_time = lambda: now
        task = progress.add_task("tokenize", total=total, note="")
        for now in range(seconds + 1):
            progress.update(task, completed=min(total, now * bytes_a_second), note=NOTE)
    return capsys.readouterr().err.splitlines()


def test_a_log_gets_a_line_now_and_then(capsys):
    slow = lines(600, 10**5, capsys)
    assert len(slow) == 10  # one a minute
    assert slow[-1] == f"tokenize: 6%, 100.0 kB/s, 2:36:40 left, {NOTE}"
    fast = lines(1000, 10**6, capsys)
    assert 16 <= len(fast) <= 20  # one for each twentieth
    assert fast[0].startswith("tokenize: 5%, 1.0 MB/s, 0:15:50 left")


def test_a_short_run_and_an_empty_one_leave_the_log_alone(capsys):
    assert lines(8, 10**8, capsys) == []
    assert lines(8, 0, capsys, total=0) == []


def test_a_log_that_stands_still_says_so(capsys):
    assert len(lines(600, 0, capsys)) == 10
