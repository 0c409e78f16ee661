"""Long and short documents apart, every one whole and in order; a blend that keeps the domains' shares."""

import json

import numpy as np
import pytest

from data_tools import upsample as module
from data_tools.indexed import open_indexed, write_index
from data_tools.upsample import upsample
from data_tools.verify import verify

LENGTHS = {"web": [3, 20, 5, 11, 0, 9, 30], "code": [10, 11, 40]}


@pytest.fixture
def domains(tmp_path):
    """Two domains whose ids count up, so that every token tells where it was."""
    prefixes = []
    for name, lengths in LENGTHS.items():
        np.arange(sum(lengths), dtype=np.uint16).tofile(tmp_path / f"{name}.bin")
        write_index(tmp_path / f"{name}.idx", np.dtype(np.uint16), [np.array(lengths, np.int32)])
        prefixes.append(tmp_path / name)
    return prefixes


def documents(prefix):
    indexed = open_indexed(prefix)
    return [indexed.read(sequence).tolist() for sequence in range(len(indexed.lengths))]


@pytest.mark.parametrize("block", [1, 17, 1 << 24])
def test_every_document_goes_to_one_part(block, domains, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_TOKENS", block)
    upsample(domains, tmp_path / "out", longer_than=10, long_share=0.7)
    for prefix in domains:
        whole = documents(prefix)
        for kind in ("long", "short"):
            part = documents(tmp_path / "out" / f"{prefix.name}-{kind}")
            assert part == [document for document in whole if (len(document) > 10) == (kind == "long")]
            verify(tmp_path / "out" / f"{prefix.name}-{kind}")


def test_domains_keep_their_shares(domains, tmp_path):
    shares = upsample(domains, tmp_path / "out", longer_than=10, long_share=0.7)
    tokens = [sum(lengths) for lengths in LENGTHS.values()]
    web, code = (count / sum(tokens) for count in tokens)
    assert shares == pytest.approx([0.7 * web, 0.3 * web, 0.7 * code, 0.3 * code])
    lines = (tmp_path / "out" / "blend.txt").read_text().splitlines()
    assert [line.rpartition("/")[2] for line in lines] == ["web-long", "web-short", "code-long", "code-short"]


def test_documents_of_several_sequences(tmp_path):
    """As other tools write them: the lengths of documents count."""
    np.arange(24, dtype=np.uint16).tofile(tmp_path / "a.bin")
    lengths, ends = np.array([4, 8, 5, 7], np.int32), np.array([2, 3, 4])
    write_index(tmp_path / "a.idx", np.dtype(np.uint16), [lengths], [ends])
    upsample([tmp_path / "a"], tmp_path / "out", longer_than=10, long_share=0.5)
    long, short = (open_indexed(tmp_path / "out" / f"a-{kind}") for kind in ("long", "short"))
    assert (long.lengths.tolist(), long.document_indices.tolist()) == ([4, 8], [0, 2])
    assert (short.lengths.tolist(), short.document_indices.tolist()) == ([5, 7], [0, 1, 2])


def test_runs_again_without_work_and_not_over_something_else(domains, tmp_path, monkeypatch):
    upsample(domains, tmp_path / "out", longer_than=10, long_share=0.7)
    before = (tmp_path / "out" / "web-long.bin").stat()
    upsample(domains, tmp_path / "out", longer_than=10, long_share=0.5)
    after = (tmp_path / "out" / "web-long.bin").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    with pytest.raises(ValueError, match="was made from something else"):
        upsample(domains, tmp_path / "out", longer_than=11, long_share=0.7)


def test_an_interrupted_run_goes_on(domains, tmp_path, monkeypatch):
    """Nothing half-written is taken for a data set."""
    finish = module._finish

    def interrupted(domain, kept, writer, source):
        if writer.prefix.name == "web-short":
            raise KeyboardInterrupt
        finish(domain, kept, writer, source)

    monkeypatch.setattr(module, "_finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        upsample(domains, tmp_path / "out", longer_than=10, long_share=0.7)
    assert not (tmp_path / "out" / "web-short.bin").exists()
    monkeypatch.setattr(module, "_finish", finish)
    upsample(domains, tmp_path / "out", longer_than=10, long_share=0.7)
    assert documents(tmp_path / "out" / "web-short")[0] == [0, 1, 2]


def test_files_of_another_tool_are_kept(domains, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "code-short.idx").write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"code-short\.idx is there already and no card .* another --output"):
        upsample(domains, tmp_path / "out", longer_than=10, long_share=0.7)
    assert (tmp_path / "out" / "code-short.idx").read_bytes() == b"precious"


def test_stopped_before_a_card_it_goes_on(domains, tmp_path, stopped_before):
    with stopped_before("web-short.json"):
        upsample(domains, tmp_path / "out", longer_than=10, long_share=0.7)
    upsample(domains, tmp_path / "out", longer_than=10, long_share=0.7)
    verify(tmp_path / "out" / "web-short")


def test_other_tokenizers_are_refused_before_the_work(domains, tmp_path):
    for prefix, vocab_size in zip(domains, (600, 700), strict=True):
        card = {"documents": 1, "tokens": 9, "file_bytes": {".bin": 1}, "vocab_size": vocab_size}
        prefix.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match="web and .*code were made with different tokenizers"):
        upsample(domains, tmp_path / "out", longer_than=10, long_share=0.7)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"long_share": 1.0}, "--long-share must lie between 0 and 1, got 1.0"),
        ({"longer_than": 0}, "--longer-than must be at least 1, got 0"),
        ({"longer_than": 50}, "web has no documents of more than 50 tokens"),
        ({"train_tokens": 1000}, "more than --max-epochs 4"),
    ],
)
def test_refusals(changes, message, domains, tmp_path):
    with pytest.raises(ValueError, match=message):
        upsample(domains, tmp_path / "out", **{"longer_than": 10, "long_share": 0.7} | changes)


@pytest.mark.parametrize(
    ("output", "changes", "message"),
    [
        ("my out", {}, "cannot hold a path with a space"),
        ("out", {"train_tokens": 1000}, "more than --max-epochs 4"),
        ("out", {"train_share": 0.01}, "web-long holds no tokens in the first 1.0%"),
        ("out", {"max_epochs": float("nan")}, "--max-epochs must be a number above 0"),
        ("taken", {}, r"code-short\.idx is there already"),
    ],
)
def test_what_is_refused_is_refused_before_the_work(output, changes, message, domains, tmp_path, monkeypatch):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "code-short.idx").write_bytes(b"of the last domain")
    monkeypatch.setattr(module, "_split", None)
    with pytest.raises(ValueError, match=message):
        upsample(domains, tmp_path / output, **{"longer_than": 10, "long_share": 0.7} | changes)
    assert not (tmp_path / output / "blend.txt").exists()


def test_epochs_are_of_what_training_reads(domains, tmp_path, capsys):
    """Tokens of the first documents of a part, not that share of its tokens."""
    upsample(domains, tmp_path / "out", longer_than=10, long_share=0.7, train_share=0.6)
    rows = [line for line in capsys.readouterr().out.splitlines() if "-long" in line]
    tokens = [int(line.split("\u2502")[2]) for line in rows]
    lengths = [[length for length in LENGTHS[name] if length > 10] for name in LENGTHS]
    assert tokens == [sum(each[: round(len(each) * 0.6)]) for each in lengths]


def test_two_domains_of_one_name(domains, tmp_path):
    with pytest.raises(ValueError, match="two domains are called web"):
        upsample([domains[0], tmp_path / "else" / "web"], tmp_path / "out", longer_than=10, long_share=0.7)


def test_command(domains, tmp_path, monkeypatch):
    from data_tools.__main__ import main

    out = tmp_path / "out"
    names = [str(prefix) for prefix in domains]
    monkeypatch.setattr(
        "sys.argv", ["phd data", "upsample", *names, "--output", str(out), "--longer-than", "10"]
    )
    assert main() == 0
    card = json.loads((out / "code-long.json").read_text())
    assert (card["documents"], card["tokens"]) == (2, 51)
    assert card["split_from"]["longer_than"] == 10
    assert "vocab_size" not in card
