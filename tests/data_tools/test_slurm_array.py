"""The SLURM example on a cluster of this machine: an array tokenizes, a dependent job merges and verifies."""

import json
import sys
from pathlib import Path

import pytest

from data_tools.tokenize import tokenize
from tests.world import ROOT
from tools.slurm_here import cluster

# The sweep of tests/examples/test_slurm.py begins with an array and its merge too.
pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def nodes():
    with cluster(nodes=2, cpus=1) as started:
        yield started


@pytest.fixture
def corpus(tmp_path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for part in range(3):
        lines = (json.dumps({"text": f"document {i} of part {part} " * 20}) + "\n" for i in range(5000))
        (folder / f"{part}.jsonl").write_text("".join(lines))
    return folder


def submit(nodes, corpus, prefix, model, *more, **environment):
    return nodes.run(
        str(ROOT / "examples" / "tokenize_slurm.sh"), "--unit-bytes", "300000", *more,
        INPUT=str(corpus), TOKENIZER_MODEL=str(model), OUTPUT_PREFIX=str(prefix), TASKS="4", CPUS="1",
        PYTHON=sys.executable, **environment,
    )  # fmt: skip


def test_array_and_merge(nodes, corpus, tokenizer_model, tmp_path):
    prefix = tmp_path / "out" / "corpus"
    prefix.parent.mkdir()
    assert "array" in submit(nodes, corpus, prefix, tokenizer_model)
    nodes.wait()
    logs = "".join(file.read_text() for file in (prefix.parent / "logs").glob("*.log"))
    assert f"{prefix}: whole, 15,000 documents" in logs, logs
    assert "rank 3 of 4 is done" in logs
    tokenize([corpus], tmp_path / "serial", tokenizer_model=tokenizer_model, append_eod=True)
    for end in (".bin", ".idx"):
        assert prefix.with_suffix(end).read_bytes() == (tmp_path / f"serial{end}").read_bytes()
    assert not prefix.with_name("corpus.units").exists()
    submit(nodes, corpus, prefix, tokenizer_model)
    nodes.wait()
    log = (prefix.parent / "logs" / "merge.log").read_text()
    assert "was deleted after its merge: nothing to do" in log and "error" not in log, log


def test_a_failed_task_keeps_the_merge_from_running_and_the_next_submission_goes_on(
    nodes,
    corpus,
    tokenizer_model,
    tmp_path,
):
    prefix = tmp_path / "out" / "corpus"
    prefix.parent.mkdir()
    good = (corpus / "1.jsonl").read_bytes()
    status = (corpus / "1.jsonl").stat()
    (corpus / "1.jsonl").write_bytes(good[:-100] + b"x" * 99 + b"\n")
    submit(nodes, corpus, prefix, tokenizer_model)
    nodes.wait()
    logs = "".join(file.read_text() for file in (prefix.parent / "logs").glob("*.log"))
    assert "1.jsonl, line 5000: broken JSON" in logs
    assert not prefix.with_suffix(".idx").exists()
    # Skipping the bad record is no other data set: what is finished stays.
    assert status.st_size == (corpus / "1.jsonl").stat().st_size
    submit(nodes, corpus, prefix, tokenizer_model, "--on-bad-record", "skip")
    nodes.wait()
    logs = "".join(file.read_text() for file in (prefix.parent / "logs").glob("*.log"))
    assert "units are done already" in logs
    assert f"{prefix}: whole, 14,999 documents" in logs, logs
