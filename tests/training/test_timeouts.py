"""A collective that one rank never joins: the waiting rank names it."""

import contextlib
import re
import shlex
import signal
from functools import partial
from pathlib import Path

import pytest

from phd.run.status import UNFINISHED, judge
from tests.starts import TIMEOUT_S, Start, signal_after
from tests.trainings import VARIANTS


def waits_in_vain(run: Path) -> str:
    """What rank 0 of two says when the other does not take part in a collective: its output."""
    import io
    from argparse import Namespace
    from datetime import timedelta
    from unittest.mock import patch

    import torch
    import torch.distributed as dist

    from phd.training.guard import RunGuard

    dist.init_process_group("gloo")
    try:
        store = dist.distributed_c10d._get_default_store()
        if dist.get_rank() == 1:
            store.wait(["given up"], timedelta(seconds=TIMEOUT_S))
            return ""
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=1))
        guard = RunGuard(Namespace(rank=0, world_size=2, save=None, train_iters=4), run)
        output = io.StringIO()
        with (
            patch("phd.training.timeouts.REPORT_SECONDS", 0.5),
            contextlib.redirect_stderr(output),
            pytest.raises(SystemExit, match="1"),
            guard.ending(lambda: None),
        ):
            dist.all_reduce(torch.ones(1))
        store.set("given up", "")
        return output.getvalue()
    finally:
        dist.destroy_process_group()


VAIN = r"rank 0 waited in vain in \w+ called at \w+\.py:\d+; no word from rank\(s\) 1: hung or dead"


def test_a_silent_rank_is_named(world, tmp_path):
    """By the one that has waited for it, with the collective, and where that was called."""
    output, _ = world.run(waits_in_vain, tmp_path / "run", ranks=2)
    assert re.search(f"error: {VAIN}", output)
    assert "in all_reduce called at test_timeouts.py:" in output
    code, line = judge(tmp_path / "run")
    assert code == UNFINISHED and re.search(VAIN, line)


@pytest.mark.slow
def test_a_hung_rank_is_named(base_flags, forks, tmp_path):
    """The other waits for a minute, then says in which collective, and who has said nothing."""
    from torch.distributed import TCPStore

    run = tmp_path / "run"
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun keeps one
    both = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    both |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    schedule = shlex.split("--train-iters 12 --save-interval 2 --eval-interval 4 --eval-iters 1")
    flags = [*base_flags, *VARIANTS["PHD-CSWA-3-5-12"], *schedule]
    more = [*flags, "--run-dir", str(run), "--distributed-timeout-minutes", "1"]
    waits = Start(more, tmp_path / "rank0.log", RANK="0", LOCAL_RANK="0", **both)
    hang = partial(signal_after, {3: signal.SIGSTOP})  # the last rank keeps the record
    hangs = Start(more, tmp_path / "rank1.log", before=hang, RANK="1", LOCAL_RANK="1", **both)
    try:
        hangs.wait_until_stopped()
        assert waits.end() == 1, waits.output()[-3000:]
        assert re.search(f"error: {VAIN}", waits.output()), waits.output()[-3000:]
        code, line = judge(run)
        assert code == UNFINISHED
        assert "no word from rank(s) 1: hung or dead" in line
    finally:
        hangs.send(signal.SIGKILL)
        hangs.end()
