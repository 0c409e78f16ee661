"""benchmarks/longgen.py: what a GPU tells of a step beside its time."""

from rich.console import Console

from benchmarks.longgen import summarize, table


def result(seconds, **kernels):
    times = {what: [seconds] for what in ("train", "prefill", "decode")}
    return times | {"flops_per_token": 1.0, "kv_bytes": 1} | kernels


def test_a_step_that_waits_for_launches_is_named():
    """Full and hybrid take the same time while the hybrid's kernels take half of full attention's."""
    results = {"full": result(4.0, decode_kernels=3.6), "longgen-sink": result(4.0, decode_kernels=1.8)}
    summarize(results)
    assert [row["decode_launch_bound"] for row in results.values()] == [False, True]
    assert results["longgen-sink"]["decode_times_as_fast"] == 1
    assert results["longgen-sink"]["decode_kernels_times_as_fast"] == 2
    console = Console(width=120, record=True)
    console.print(table(64, results))
    (row,) = (line for line in console.export_text().splitlines() if "longgen-sink" in line)
    assert "1.00 (launch-bound)" in row and "2.00" in row


def test_on_a_cpu_there_is_none():
    results = {"full": result(4.0)}
    summarize(results)
    assert "decode_launch_bound" not in results["full"] and table(64, results).row_count == 2
