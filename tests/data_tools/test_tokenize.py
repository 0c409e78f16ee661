"""Documents in, Megatron's .bin/.idx out: nothing lost, nothing changed, whatever interrupts it."""

import gzip
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import sentencepiece
from pyarrow import parquet
from tokenizers import Tokenizer, models

from data_tools import plan
from data_tools import tokenize as module
from data_tools.encoders import load_encoder
from data_tools.inputs import find_sources
from data_tools.merge import merge_units
from data_tools.records import Format
from data_tools.tokenize import tokenize
from data_tools.verify import verify
from tests.data_tools.conftest import HARD

ROOT = Path(__file__).parents[2]
FILES = (".bin", ".idx", ".ids.jsonl", ".rejects.jsonl")


def documents(prefix: Path) -> list[list[int]]:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(prefix))
    assert len(dataset.document_indices) == len(dataset) + 1
    return [dataset[i].tolist() for i in range(len(dataset))]


def contents(prefix: Path) -> list[bytes | None]:
    files = (prefix.with_name(prefix.name + end) for end in FILES)
    return [file.read_bytes() if file.exists() else None for file in files]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """Files of every kind with ids, and bad records in between."""
    folder = tmp_path_factory.mktemp("mixed")
    texts = list(HARD.values())[:-1]
    records = [{"text": f"{text} {i}", "id": i} for i in range(40) for text in texts]
    lines = [json.dumps(record, ensure_ascii=i % 2 == 0) for i, record in enumerate(records)]
    bad = ['{"text": ', '{"id": 1}', '{"text": "", "id": 1}']
    (folder / "a.jsonl").write_text("\n".join([*lines[:150], bad[0], *lines[150:], bad[1], ""]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("\n".join([*lines[:50], bad[2]]).encode()))
    with pyarrow.CompressedOutputStream(str(folder / "c.jsonl.zst"), "zstd") as file:
        file.write("\n".join(lines[50:100]).encode())
    table = pyarrow.table(
        {"text": [r["text"] for r in records] + [""], "id": [r["id"] for r in records] + [0]}
    )
    parquet.write_table(table, folder / "d.parquet", row_group_size=31)
    return folder


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


@pytest.mark.parametrize("unit_size", [3000, 10**9])
def test_workers_ranks_and_units_do_not_change_the_files(unit_size, mixed, tokenizer_model, tmp_path):
    def run(name, **changes):
        arguments = {
            "tokenizer_model": tokenizer_model, "append_eod": True, "prepend_bos": True,
            "unit_size": unit_size, "form": Format(id_field="id"),
            "stop_on_bad_record": False, "max_bad_share": 0.05,
        }  # fmt: skip
        return tokenize([mixed], tmp_path / name, **arguments | changes)

    card = run("one")
    run("three", workers=3)
    for rank in (2, 0, 1):  # in any order
        assert run("ranks", rank=rank, world_size=3) is None
    merge_units(tmp_path / "ranks.units", tmp_path / "ranks")
    run("slow", fast=False, unit_size=10**9)
    expected = contents(tmp_path / "one")
    assert None not in expected
    for name in ("three", "ranks", "slow"):
        assert contents(tmp_path / name) == expected, name
        verify(tmp_path / name)
    assert not (tmp_path / "one.units").exists()

    assert card["rejects"] == {"broken JSON": 1, "empty": 2, "missing field": 1}
    rejects = [json.loads(line) for line in (tmp_path / "one.rejects.jsonl").read_text().splitlines()]
    assert [(Path(r["file"]).name, r["line"], r["kind"]) for r in rejects] == [
        ("a.jsonl", 151, "broken JSON"),
        ("a.jsonl", 322, "missing field"),
        ("b.jsonl.gz", 51, "empty"),
        ("d.parquet", 321, "empty"),
    ]
    ids = [json.loads(line) for line in (tmp_path / "one.ids.jsonl").read_text().splitlines()]
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    written = documents(tmp_path / "one")
    assert len(ids) == len(written) == card["documents"] == 320 + 50 + 50 + 320
    for identifier, tokens in zip(ids, written, strict=True):
        assert processor.decode(tokens[1:-1]).endswith(f" {identifier}")
        assert (tokens[0], tokens[-1]) == (1, 2)


COMMAND = (sys.executable, "-m", "data_tools", "tokenize")
PATIENCE_S = 300
"""A process that takes longer hangs."""
# `python -m data_tools`, and a signal in the moment before a file with a certain ending gets its name, when
# so many units are done; once, by the first of its processes: workers too import their main module.
STOPPED = """
import multiprocessing, os, signal, sys
from pathlib import Path

from data_tools.__main__ import main

ending, done, send = os.environ["ENDING"], int(os.environ["DONE"]), os.environ["SEND"]
replace = Path.replace

def stopped(path, target):
    cards = [card for card in target.parent.glob("*.json") if card.name != "plan.json"]
    if target.name.endswith(ending) and len(cards) >= done and is_first():
        exec(send)
    return replace(path, target)

def is_first():
    try:
        return Path(f"{__file__}.{os.getsid(0)}").touch(exist_ok=False) is None
    except FileExistsError:
        return False

Path.replace = stopped
if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.fixture
def stopped(tokenizer_model, tmp_path):
    """Start a run on ``path``, which ``send`` stops before a file that ends with ``ending`` is in place."""
    (tmp_path / "stopped.py").write_text(STOPPED)

    def start(path: Path, ending: str, done: int, send: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(tmp_path / "stopped.py"), "tokenize"]
        command += ["--input", str(path), "--output-prefix", str(tmp_path / "out"), "--workers", "2"]
        command += ["--tokenizer-model", str(tokenizer_model), "--unit-bytes", "100000", "--no-fast"]
        moment = {"ENDING": ending, "DONE": str(done), "SEND": send}
        return subprocess.Popen(
            [*command, "--id-field", "id", "--on-bad-record", "skip"],
            cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), **moment}, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


def assert_nothing_is_left(run: subprocess.Popen) -> None:
    """No process of its session, soon: multiprocessing's own end after the others."""
    deadline = time.monotonic() + PATIENCE_S
    while left := subprocess.run(["pgrep", "--session", str(run.pid)], capture_output=True).stdout:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@pytest.fixture
def words(tmp_path) -> Path:
    """A dozen units, with bad records and ids."""
    return write_words(tmp_path / "words.jsonl", 3500)


def write_words(path: Path, documents: int) -> Path:
    generator = random.Random(0)
    words = HARD["english"].split()
    with open(path, "w") as file:
        for i in range(documents):
            text = " ".join(generator.choices(words, k=generator.randint(1, 120)))
            file.write(json.dumps({"text": text, "id": i}) + "\n" + ("broken\n" if i % 1000 == 0 else ""))
    return path


def tokenize_words(path: Path, prefix: Path, tokenizer_model: Path) -> list[bytes | None]:
    tokenize(
        [path], prefix, tokenizer_model=tokenizer_model, form=Format(id_field="id"), unit_size=100_000,
        stop_on_bad_record=False, fast=False,
    )  # fmt: skip
    return contents(prefix)


def test_killed_at_the_wrong_moments(words, stopped, tokenizer_model, tmp_path):
    """SIGKILL of all its processes, again and again; in the end the bytes of a run that nothing stopped."""
    moments = [
        ("plan.json", 0),
        (".bin", 0),
        (".ids.jsonl", 2),
        (".json", 3),
        ("out.idx", 0),
        ("out.json", 0),
    ]
    for ending, done in moments:
        run = stopped(words, ending, done, "os.killpg(0, signal.SIGKILL)")
        assert run.wait(PATIENCE_S) == -signal.SIGKILL, (ending, run.communicate()[1])
        assert not (tmp_path / "out.json").exists()
    assert tokenize_words(words, tmp_path / "out", tokenizer_model) == tokenize_words(
        words, tmp_path / "whole", tokenizer_model
    )
    assert not (tmp_path / "out.units").exists()


@pytest.mark.slow
def test_killed_twenty_times(tokenizer_model, tmp_path):
    """SIGKILL of all its processes at random moments."""
    words = write_words(tmp_path / "big.jsonl", 40_000)
    command = [*COMMAND, "--input", str(words), "--workers", "2", "--tokenizer-model", str(tokenizer_model)]
    command += ["--no-fast", "--unit-bytes", "100000", "--id-field", "id", "--on-bad-record", "skip"]
    generator = random.Random(0)
    killed = finished = 0
    while killed < 20:
        run = subprocess.Popen(
            [*command, "--output-prefix", str(tmp_path / f"out{finished}")],
            cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            run.wait(generator.uniform(0.05, 1.6))
            assert run.returncode == 0
            finished += 1  # it was quicker: begin another
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            killed += 1
    whole = tokenize_words(words, tmp_path / "whole", tokenizer_model)
    for number in range(finished + 1):
        assert tokenize_words(words, tmp_path / f"out{number}", tokenizer_model) == whole


def test_a_worker_that_is_killed_is_an_error_and_the_next_run_goes_on(
    words, stopped, tokenizer_model, tmp_path, capsys
):
    run = stopped(words, ".bin", 2, "os.kill(os.getpid(), signal.SIGKILL)")
    _, errors = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 2
    assert "--workers 2: one of them was killed" in errors
    assert_nothing_is_left(run)
    tokenize_words(words, tmp_path / "out", tokenizer_model)
    assert "units are done already" in capsys.readouterr().out


def test_workers_leave_with_a_killed_parent(words, stopped):
    run = stopped(words, ".bin", 0, "os.kill(multiprocessing.parent_process().pid, signal.SIGKILL)")
    assert run.wait(PATIENCE_S) == -signal.SIGKILL
    assert_nothing_is_left(run)


def test_ranks_that_start_at_the_same_moment(mixed, tokenizer_model, tmp_path):
    command = [*COMMAND, "--input", str(mixed), "--workers", "1", "--tokenizer-model", str(tokenizer_model)]
    command += ["--unit-bytes", "2000", "--on-bad-record", "skip", "--max-bad-share", "1"]
    command += ["--output-prefix", str(tmp_path / "out"), "--world-size", "3", "--rank"]
    ranks = [subprocess.Popen([*command, str(rank)], cwd=ROOT, stderr=subprocess.PIPE) for rank in range(3)]
    errors = [rank.communicate()[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * 3, errors
    merge_units(tmp_path / "out.units", tmp_path / "out")
    arguments = {"tokenizer_model": tokenizer_model, "stop_on_bad_record": False, "max_bad_share": 1}
    tokenize([mixed], tmp_path / "whole", **arguments)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_full_disk_is_one_line_and_the_next_run_goes_on(tokenizer_model, tmp_path):
    """A limit on the size of files stands in for the disk: the write fails in a worker in the same way."""
    path = tmp_path / "in.jsonl"
    path.write_text((json.dumps({"text": HARD["english"] * 40}) + "\n") * 2000)
    command = [*COMMAND, "--input", str(path), "--workers", "2", "--tokenizer-model", str(tokenizer_model)]
    command += ["--unit-bytes", "1000000", "--output-prefix"]
    limit = (300_000, resource.RLIM_INFINITY)
    run = subprocess.run(
        [*command, str(tmp_path / "out")],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip
    assert run.returncode == 2
    assert "error: [Errno 27] File too large" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "out.idx").exists()
    tokenize([path], tmp_path / "out", tokenizer_model=tokenizer_model, unit_size=1_000_000)
    tokenize([path], tmp_path / "whole", tokenizer_model=tokenizer_model)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_interrupted_by_the_user(words, stopped):
    """Ctrl-C in a terminal reaches all processes: one line, and no worker is left."""
    run = stopped(words, ".bin", 0, "os.killpg(0, signal.SIGINT)")
    _, errors = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 130
    assert "Traceback" not in errors
    assert_nothing_is_left(run)


def test_again_does_nothing_and_a_change_is_refused(
    hard_jsonl, tokenizer_model, tmp_path, monkeypatch, capsys
):
    first = tokenize([hard_jsonl], tmp_path / "out", tokenizer_model=tokenizer_model)
    monkeypatch.setattr(module, "_run", None)
    assert tokenize([hard_jsonl], tmp_path / "out", tokenizer_model=tokenizer_model) == first
    assert "already done" in capsys.readouterr().out
    with pytest.raises(ValueError, match="eod_id was None, is 2"):
        tokenize([hard_jsonl], tmp_path / "out", tokenizer_model=tokenizer_model, append_eod=True)
    (tmp_path / "more.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(ValueError, match=r"inputs was None, is {.*more\.jsonl.*}"):
        tokenize([hard_jsonl, tmp_path / "more.jsonl"], tmp_path / "out", tokenizer_model=tokenizer_model)
    (tmp_path / "out.bin").unlink()
    with pytest.raises(ValueError, match=r"out\.bin is missing"):
        tokenize([hard_jsonl], tmp_path / "out", tokenizer_model=tokenizer_model)
    (tmp_path / "out.json").write_text("{}")
    with pytest.raises(ValueError, match=r"out\.json is no card .*: move it away"):
        tokenize([hard_jsonl], tmp_path / "out", tokenizer_model=tokenizer_model)


def test_half_done_with_something_else_is_refused(tokenizer_model, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text('{"text": "a"}\n' * 100)
    arguments = {"tokenizer_model": tokenizer_model, "unit_size": 900, "world_size": 2}
    tokenize([tmp_path / "a.jsonl"], tmp_path / "out", **arguments)
    for changes, message in (
        ({"inputs": [tmp_path / "b.jsonl"]}, "inputs was"),
        ({"unit_size": 800}, "unit_bytes was 900, is 800"),
        ({"append_eod": True}, "eod_id was None, is 2"),
    ):
        changed = {"inputs": [tmp_path / "a.jsonl"]} | arguments | changes
        with pytest.raises(ValueError, match=rf"plan\.json was made from something else \({message}"):
            tokenize(output_prefix=tmp_path / "out", **changed)


def test_a_mended_record_costs_the_units_of_its_file(tokenizer_model, tmp_path, monkeypatch, capsys):
    """And no others, though the size of units follows from that of the inputs, and this one has grown."""
    inputs = [tmp_path / f"{name}.jsonl" for name in "abc"]
    for path in inputs:
        path.write_text("".join(f'{{"text": "{path.stem} {i}"}}\n' for i in range(100)))
    good = inputs[1].read_text()
    inputs[1].write_text(good.replace('"b 60"', "6"))
    monkeypatch.setattr(plan, "unit_bytes", lambda sources: sum(source.size for source in sources) // 6)
    arguments = {"tokenizer_model": tokenizer_model, "stop_on_bad_record": False, "max_bad_share": 1}

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "merge_units", stop)
        tokenize(inputs, tmp_path / "out", **arguments)
    units = [json.loads(card.read_text())["unit"] for card in (tmp_path / "out.units").glob("*[!n].json")]
    kept = [unit for unit in units if all(source["path"] != str(inputs[1]) for source, _, _ in unit)]
    assert 0 < len(kept) < len(units)
    inputs[1].write_text(good.replace('"b 60"', '"b 60 is mended, and longer than it was"'))
    card = tokenize(inputs, tmp_path / "out", **arguments)
    output = capsys.readouterr().out
    assert "1 of 3 inputs have changed" in output
    assert re.findall(r"(\d+) of \d+ units are done already", output) == [str(len(kept))]
    assert (card["documents"], card["rejects"]) == (300, {})
    tokenize(inputs, tmp_path / "whole", tokenizer_model=tokenizer_model)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert tokenize(inputs, tmp_path / "out", tokenizer_model=tokenizer_model) == card


def test_files_of_another_tool_are_kept(hard_jsonl, tokenizer_model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_run", None)  # refused before any work
    (tmp_path / "out.idx").write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"out\.idx is there already and no card"):
        tokenize([hard_jsonl], tmp_path / "out", tokenizer_model=tokenizer_model)
    assert not (tmp_path / "out.units").exists()


def test_torn_shard_is_made_again(tokenizer_model, tmp_path, capsys):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f'{{"text": "document {i}"}}\n' for i in range(100)))
    arguments = {"tokenizer_model": tokenizer_model, "unit_size": 500}
    tokenize([path], tmp_path / "whole", **arguments)
    for rank in (0, 1):
        tokenize([path], tmp_path / "out", rank=rank, world_size=2, **arguments)
    names = json.loads((tmp_path / "out.units" / "plan.json").read_text())["units"]
    (tmp_path / "out.units" / f"{names[1]}.bin").write_bytes(b"torn")
    (tmp_path / "out.units" / f"{names[2]}.json").write_text('{"options": ')
    with pytest.raises(ValueError, match=rf"{names[1]}\.bin holds 4 bytes"):
        merge_units(tmp_path / "out.units", tmp_path / "out")
    capsys.readouterr()
    tokenize([path], tmp_path / "out", **arguments)
    units = len(list(find_sources([path]))) and -(-path.stat().st_size // 500)
    assert f"{units - 2} of {units} units are done already" in capsys.readouterr().out
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_missing_units_are_named(tokenizer_model, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "a"}\n' * 100)
    tokenize([path], tmp_path / "out", tokenizer_model=tokenizer_model, unit_size=300, rank=1, world_size=2)
    with pytest.raises(ValueError, match=r"3 of 5 units are not done \(0, 2, 4\)"):
        merge_units(tmp_path / "out.units", tmp_path / "out")
    with pytest.raises(ValueError, match="no folder of work units"):
        merge_units(tmp_path / "none.units", tmp_path / "out")


def test_bad_record_stops_the_run(tokenizer_model, tmp_path):
    """Also from another process: the message keeps file and line, and nothing looks whole."""
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n{"text": 3}\n')
    message = (
        r"bad\.jsonl, line 3: not a string: field 'text' is int, .* keeps the finished units of all other"
    )
    with pytest.raises(ValueError, match=message):
        tokenize([path], tmp_path / "out", tokenizer_model=tokenizer_model)
    assert not list(tmp_path.glob("out.*[nx]"))
    with pytest.raises(ValueError, match="1 of 2 records are bad .* more than --max-bad-share"):
        tokenize([path], tmp_path / "out", tokenizer_model=tokenizer_model, stop_on_bad_record=False)
    card = tokenize(
        [path], tmp_path / "out", tokenizer_model=tokenizer_model, stop_on_bad_record=False, max_bad_share=0.5
    )
    assert (card["documents"], card["rejects"]) == (1, {"not a string": 1})


def test_empty_texts_are_passed_over_and_counted(tokenizer_model, tmp_path, in_process, capsys):
    """As Megatron's own tool does; they are no bad records, however many, unless that is asked for."""
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "a"}\n' + '{"text": ""}\n' * 9)
    card = tokenize([path], tmp_path / "out", tokenizer_model=tokenizer_model)
    assert (card["documents"], card["rejects"]) == (1, {"empty": 9})
    assert "1 documents, 1 tokens, uint16, 9 empty texts passed over\n" in capsys.readouterr().out
    listed = (tmp_path / "out.rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in listed] == list(range(2, 11))
    strict = {"tokenizer_model": tokenizer_model, "empty_is_bad": True}
    with pytest.raises(ValueError, match=r"in\.jsonl, line 2: empty: .* --on-bad-record skip"):
        tokenize([path], tmp_path / "strict", **strict)
    with pytest.raises(ValueError, match=r"9 of 10 records are bad \(9 empty\), more than --max-bad-share"):
        tokenize([path], tmp_path / "strict", stop_on_bad_record=False, **strict)
    tokenize([path], tmp_path / "strict", stop_on_bad_record=False, max_bad_share=0.9, **strict)
    path.write_text('{"text": ""}\n')
    with pytest.raises(ValueError, match="there is no document"):
        tokenize([path], tmp_path / "none", tokenizer_model=tokenizer_model)


@pytest.mark.parametrize("kind", ["jsonl", "txt", "parquet"])
def test_a_name_that_is_not_utf8(kind, tokenizer_model, tmp_path, in_process, monkeypatch):
    """A bad record in such a file is listed like any other, also by the merge of ranks."""
    folder = tmp_path / "in\udcff"
    folder.mkdir()
    path = folder / f"\udcfe.{kind}"
    form = Format()
    if kind == "parquet":
        with open(path, "wb") as file:
            parquet.write_table(pyarrow.table({"text": ["a", None]}), file)
    elif kind == "txt":
        path.write_bytes(b"a\n---\n\xff")
        form = Format(document_separator="---")
    else:
        path.write_text('{"text": "a"}\nbad\n')
    prefix = folder / "out\udcfd"
    arguments = {"tokenizer_model": tokenizer_model, "stop_on_bad_record": False, "max_bad_share": 0.5}
    tokenize([path], prefix, form=form, world_size=2, **arguments)
    card = merge_units(prefix.with_name(f"{prefix.name}.units"), prefix)
    assert sum(card["rejects"].values()) == 1
    (line,) = prefix.with_name(f"{prefix.name}.rejects.jsonl").read_bytes().splitlines()
    assert json.loads(line.decode("utf-8"))["file"] == str(path)
    verify(prefix)
    with pytest.raises(ValueError, match="line|row"):
        tokenize([path], prefix.with_name("other"), form=form, tokenizer_model=tokenizer_model)


def test_a_name_that_is_not_utf8_in_a_message(tokenizer_model, tmp_path):
    """Whatever the encoding of the terminal."""
    path = tmp_path / "\udcff.jsonl"
    path.write_text("bad\n")
    (tmp_path / "folder").mkdir()
    for inputs in ([str(path)], [f"{tmp_path}/\udcfe.jsonl"], [str(tmp_path / "folder")]):
        run = subprocess.run(
            [*COMMAND, "--input", *inputs, "--tokenizer-model", "none\udcff.model", "--output-prefix", "out"],
            cwd=ROOT, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}, check=False,
        )  # fmt: skip
        assert run.returncode == 2
        assert b"error: --" in run.stderr and b"Traceback" not in run.stderr


def test_where_the_tokenizer_fails_the_document_is_named(tokenizer_model, tmp_path, in_process, monkeypatch):
    """Its library names none."""

    def load(*args: Any, **kwargs: Any) -> Any:
        encoder = load_encoder(*args, **kwargs)
        encode = encoder.encode

        def fail(texts: list[str], *, limit: int) -> Any:
            if "other words" in texts:
                raise Exception("unknown token")
            return encode(texts, limit=limit)

        setattr(encoder, "encode", fail)  # noqa: B010
        return encoder

    monkeypatch.setattr("tests.data_tools.conftest.load_encoder", load)
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"text": "other words"}\n{"text": "a"}\n')
    with pytest.raises(ValueError, match=r"in\.jsonl: the tokenizer fails on .* begins 'other words'"):
        tokenize([tmp_path / "in.jsonl"], tmp_path / "out", tokenizer_model=tokenizer_model)


def test_a_script_without_a_main_guard_is_told_so(words, tokenizer_model, tmp_path):
    script = tmp_path / "script.py"
    call = "tokenize([sys.argv[1]], Path(sys.argv[2]), tokenizer_model=sys.argv[3])"
    start = "import sys\nfrom pathlib import Path\nfrom data_tools.tokenize import tokenize\n"
    command = [sys.executable, script, words, tmp_path / "out", tokenizer_model]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for ending, status in ((call, 1), (f"if __name__ == '__main__':\n    {call}", 1)):
        script.write_text(start + ending)
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert run.returncode == status
        last = run.stderr.strip().splitlines()[-1]
        if ending == call:
            assert 'under `if __name__ == "__main__":`' in last and "memory" not in last
        else:
            assert "broken JSON" in last  # the worker came to the first bad record


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ({-signal.SIGKILL, -signal.SIGTERM, 0}, "was killed .* want of memory"),
        ({-signal.SIGSEGV, -signal.SIGTERM}, "was ended by SIGSEGV"),
        ({1, -signal.SIGTERM, None}, "ended with status 1; what it said"),
        ({-signal.SIGTERM}, r"ended from outside \(SIGTERM\)"),
        ({module.NO_MAIN_GUARD, -signal.SIGTERM}, "imports the main script anew"),
    ],
)
def test_why_a_worker_is_gone(codes, message):
    assert re.search(message, module._why_broken(codes))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"inputs": [Path("none.jsonl")]}, FileNotFoundError, "none.jsonl: there is no such file"),
        ({"inputs": [Path(__file__)]}, ValueError, "expected one of .jsonl"),
        ({"tokenizer_model": Path("none.model")}, FileNotFoundError, "none.model"),
        ({"workers": 0}, ValueError, "--workers must be at least 1"),
        ({"rank": 2, "world_size": 2}, ValueError, "--rank must be from 0"),
        ({"unit_size": -1}, ValueError, "--unit-bytes must be at least 1"),
        ({"max_bad_share": 2}, ValueError, "--max-bad-share must be from 0 to 1"),
        ({"max_bad_share": float("nan")}, ValueError, "--max-bad-share must be from 0 to 1, got nan"),
        ({"worker_memory": -1}, ValueError, "--worker-memory must be at least 1"),
        ({"form": Format(document_separator="---")}, ValueError, "--document-separator is for .txt files"),
        ({"form": Format(document_separator="a\nb")}, ValueError, "--document-separator is one line"),
        ({"append_eod": True, "eod_token": "<end>"}, ValueError, "--eod-token <end>"),
        ({"eod_token": "</s>"}, ValueError, "--eod-token </s> does nothing without --append-eod"),
        ({"bos_token": "<s>"}, ValueError, "--bos-token <s> does nothing without --prepend-bos"),
    ],
)
def test_bad_arguments(changes, error, message, hard_jsonl, tokenizer_model, tmp_path):
    arguments = {"inputs": [hard_jsonl], "tokenizer_model": tokenizer_model} | changes
    with pytest.raises(error, match=message):
        tokenize(output_prefix=tmp_path / "out", **arguments)


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


def test_a_large_vocabulary_is_int32(tmp_path):
    """Ids of 65,500 and more do not fit into uint16."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(70_000)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "in.jsonl").write_text('{"text": "w3 w69999 w65535"}\n')
    card = tokenize([tmp_path / "in.jsonl"], tmp_path / "out", tokenizer_model=tmp_path / "tokenizer.json")
    assert card["dtype"] == "int32"
    assert documents(tmp_path / "out") == [[3, 69999, 65535]]


def save_letters(path, **changes):
    """A tokenizer.json of two letters, and of nothing else."""
    tokenizer = json.loads(Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])).to_str())
    path.write_text(json.dumps(tokenizer | {"model": tokenizer["model"] | changes}))
    return path


def test_what_the_tokenizer_does_not_know_is_told(tmp_path, capsys):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("ab", "a\u5929b", "\u5929\u5730")))
    arguments = {"tokenizer_model": save_letters(tmp_path / "letters.json"), "max_bad_share": 0.5}
    with pytest.raises(ValueError, match=r"in\.jsonl, line 3: no tokens"):
        tokenize([path], tmp_path / "out", **arguments)
    card = tokenize([path], tmp_path / "out", stop_on_bad_record=False, **arguments)
    assert (card["rejects"], card["documents_with_unknown"], card["unknown"]) == ({"no tokens": 1}, 1, 1)
    assert "1 of 2 documents hold what the tokenizer does not know, 1 times" in capsys.readouterr().out


def test_dropout_is_switched_off_and_told(tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": "ab" * 100}) + "\n")
    arguments = {"tokenizer_model": save_letters(tmp_path / "letters.json", dropout=0.5)}
    assert tokenize([tmp_path / "in.jsonl"], tmp_path / "out", **arguments)["tokens"] == 100
    assert "letters.json asks for dropout 0.5: switched off" in capsys.readouterr().out
