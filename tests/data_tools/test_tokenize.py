"""Documents in, Megatron's .bin/.idx out: nothing lost, nothing changed, whatever interrupts it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from data_tools import tokenize as module
from data_tools.files import lock
from data_tools.tokenize import tokenize
from tests.data_tools.conftest import HARD

ROOT = Path(__file__).parents[2]


def documents(prefix: Path) -> list[list[int]]:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(prefix))
    assert len(dataset.document_indices) == len(dataset) + 1
    return [dataset[i].tolist() for i in range(len(dataset))]


def test_every_document_decodes_to_its_text(hard_jsonl, tokenizer_model, tmp_path):
    """And its ids are those of Megatron's own tokenizer, EOD at the end."""
    from megatron.core.tokenizers import MegatronTokenizer

    card = tokenize([hard_jsonl], tmp_path / "out", tokenizer_model=tokenizer_model, append_eod=True)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    megatron = MegatronTokenizer.from_pretrained(
        str(tokenizer_model), metadata_path={"library": "sentencepiece"}
    )
    written = documents(tmp_path / "out")
    texts = list(HARD.values()) * 6
    assert [processor.decode(ids[:-1]) for ids in written] == texts
    for ids, text in zip(written[: len(HARD)], texts, strict=False):
        assert ids == [*megatron.tokenize(text), megatron.eod]
        assert not {0, 1, 2} & set(ids[:-1])
    assert card["documents"] == len(texts)
    assert card["tokens"] == sum(map(len, written))
    assert card["dtype"] == "uint16"


def test_workers_do_not_change_the_files(hard_jsonl, tokenizer_model, tmp_path, monkeypatch):
    monkeypatch.setattr("data_tools.documents.BATCH_BYTES", 100_000)
    for workers in (1, 3):
        tokenize([hard_jsonl], tmp_path / str(workers), tokenizer_model=tokenizer_model, workers=workers)
    for end in (".bin", ".idx"):
        assert (tmp_path / f"1{end}").read_bytes() == (tmp_path / f"3{end}").read_bytes()


def test_bad_record_stops_the_run(tokenizer_model, tmp_path):
    """Also from another process: the message keeps file and line, and nothing looks whole."""
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n{"text": 3}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 3: field 'text' is int"):
        tokenize([path], tmp_path / "out", tokenizer_model=tokenizer_model)
    assert {file.suffix for file in tmp_path.glob("out.*")} <= {".tmp"}


def test_again_does_nothing_and_a_change_is_refused(
    hard_jsonl, tokenizer_model, tmp_path, monkeypatch, capsys
):
    first = tokenize([hard_jsonl], tmp_path / "out", tokenizer_model=tokenizer_model)
    monkeypatch.setattr(module, "_write", None)
    assert tokenize([hard_jsonl], tmp_path / "out", tokenizer_model=tokenizer_model) == first
    assert "already done" in capsys.readouterr().out
    with pytest.raises(ValueError, match="append_eod was False, is True"):
        tokenize([hard_jsonl], tmp_path / "out", tokenizer_model=tokenizer_model, append_eod=True)
    with pytest.raises(ValueError, match=r"inputs was None, is {.*hard\.jsonl.*}"):
        tokenize([hard_jsonl, hard_jsonl], tmp_path / "out", tokenizer_model=tokenizer_model)
    (tmp_path / "out.bin").unlink()
    with pytest.raises(ValueError, match=r"out\.bin is missing"):
        tokenize([hard_jsonl], tmp_path / "out", tokenizer_model=tokenizer_model)
    (tmp_path / "out.json").write_text("{}")
    with pytest.raises(ValueError, match="not written by `tokenize`"):
        tokenize([hard_jsonl], tmp_path / "out", tokenizer_model=tokenizer_model)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"paths": [Path("none.jsonl")]}, FileNotFoundError, "none.jsonl: there is no such file"),
        ({"paths": [Path(__file__)]}, ValueError, "expected a .jsonl or .txt file"),
        ({"tokenizer_model": Path("none.model")}, FileNotFoundError, "none.model"),
        ({"tokenizer_model": Path(__file__)}, ValueError, "not a SentencePiece model"),
        ({"workers": 0}, ValueError, "--workers must be at least 1"),
    ],
    ids=["input", "kind", "tokenizer", "not-a-tokenizer", "workers"],
)
def test_bad_arguments(changes, error, message, hard_jsonl, tokenizer_model, tmp_path):
    arguments = {"paths": [hard_jsonl], "tokenizer_model": tokenizer_model} | changes
    with pytest.raises(error, match=message):
        tokenize(output_prefix=tmp_path / "out", **arguments)


def test_eod_that_the_tokenizer_does_not_have(hard_jsonl, tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some words"] * 9),
        model_prefix=str(tmp_path / "no"),
        model_type="char",
        vocab_size=9,
        hard_vocab_limit=False,
        eos_id=-1,
    )
    with pytest.raises(ValueError, match="--append-eod: .*no.model has no </s>"):
        tokenize([hard_jsonl], tmp_path / "out", tokenizer_model=tmp_path / "no.model", append_eod=True)


def test_no_documents(tokenizer_model, tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="there is no document"):
        tokenize([tmp_path / "empty.jsonl"], tmp_path / "out", tokenizer_model=tokenizer_model)


def test_the_mark_of_a_space_is_counted(tokenizer_model, tmp_path, capsys):
    """U+2581 is the one character that SentencePiece does not give back: the run says so."""
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"text": "a\u2581b"}) + "\n" + json.dumps({"text": "a b"}) + "\n")
    card = tokenize([path], tmp_path / "out", tokenizer_model=tokenizer_model)
    assert card["documents_with_space_mark"] == 1
    assert "1 documents hold U+2581" in capsys.readouterr().out
    assert documents(tmp_path / "out")[0] == documents(tmp_path / "out")[1]


def test_second_run_keeps_off(hard_jsonl, tokenizer_model, tmp_path):
    """`srun -n 8` of one command, say: eight writers of one file would spoil it."""
    arguments = {"output_prefix": tmp_path / "out", "tokenizer_model": tokenizer_model}
    with lock(tmp_path / "out.bin.tmp"), pytest.raises(ValueError, match="another run is writing it"):
        tokenize([hard_jsonl], **arguments)
    tokenize([hard_jsonl], **arguments)


@pytest.mark.parametrize("renames", range(4))
def test_torn_between_renames_never_pairs_old_with_new(
    renames, hard_jsonl, prefix, tokenizer_model, monkeypatch
):
    """Written anew over other files and stopped after so many renames: both old, one missing, or both new."""
    prefix.with_suffix(".json").unlink()
    old = pair(prefix)
    done = 0

    def rename(path, target):
        nonlocal done
        if done == renames:
            raise KeyboardInterrupt
        done += 1
        path.replace(target)

    def again():
        tokenize([hard_jsonl], prefix, tokenizer_model=tokenizer_model, append_eod=True)

    with monkeypatch.context() as patch:
        patch.setattr(module, "rename", rename)
        patch.setattr("data_tools.files.rename", rename)
        with contextlib.suppress(KeyboardInterrupt):
            again()
    torn = pair(prefix)
    assert prefix.with_suffix(".json").exists() == (renames == 3)
    again()
    new = pair(prefix)
    assert None not in new
    assert all(a != b for a, b in zip(old, new, strict=True))
    assert torn in (new, (old[0], None), (new[0], None))


def pair(prefix: Path) -> tuple[bytes | None, ...]:
    files = (prefix.with_suffix(end) for end in (".bin", ".idx"))
    return tuple(file.read_bytes() if file.exists() else None for file in files)


@pytest.mark.parametrize("moment", ["start", "writing"])
def test_killed_run_leaves_nothing_that_looks_whole(moment, tokenizer_model, tmp_path):
    """SIGKILL, then the same command again: the bytes of an uninterrupted run."""
    path = tmp_path / "big.jsonl"
    path.write_text((json.dumps({"text": HARD["english"] * 50}) + "\n") * 2000)
    command = [sys.executable, "-m", "data_tools", "tokenize", "--input", str(path)]
    command += ["--tokenizer-model", str(tokenizer_model), "--workers", "1", "--output-prefix"]
    run = subprocess.Popen(
        [*command, str(tmp_path / "out")], cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL
    )
    unfinished = tmp_path / "out.bin.tmp"
    while moment == "writing" and not (unfinished.exists() and unfinished.stat().st_size):
        assert run.poll() is None
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert not [file for file in tmp_path.glob("out.*") if file.suffix != ".tmp"]
    subprocess.run([*command, str(tmp_path / "out")], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    tokenize([path], tmp_path / "whole", tokenizer_model=tokenizer_model)
    for end in (".bin", ".idx"):
        assert (tmp_path / f"out{end}").read_bytes() == (tmp_path / f"whole{end}").read_bytes()
    assert np.fromfile(tmp_path / "out.bin", dtype=np.uint16).max() < 600
