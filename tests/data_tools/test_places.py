"""No command writes over what it reads, or over what it did not write; no message says to delete that."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_tools.blend import blend
from data_tools.indexed import write_index
from data_tools.inspect import inspect
from data_tools.merge import merge_data_sets, merge_units
from data_tools.places import check_prefix, data_set_files, file_key, refuse_twice
from data_tools.records import Format
from data_tools.tokenize import tokenize
from data_tools.train import train_tokenizer
from data_tools.upsample import upsample

DOCUMENTS = b'{"text": "precious", "id": 1}\n' * 3


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "in.jsonl").write_bytes(DOCUMENTS)
    return tmp_path / "in.jsonl"


@pytest.fixture
def data_set(tmp_path):
    np.arange(60, dtype=np.uint16).tofile(tmp_path / "web.bin")
    write_index(tmp_path / "web.idx", np.dtype(np.uint16), [np.array([3, 20, 5, 32], np.int32)])
    return tmp_path / "web"


def as_is(source, target):
    source.rename(target)


def symlink(source, target):
    target.symlink_to(source)


LINKS = {"itself": as_is, "hard link": os.link, "symbolic link": symlink}
WRITTEN = ["out.ids.jsonl", "out.rejects.jsonl", "out.json", "out.bin.tmp", "out.idx.tmp", "out.json.tmp"]
WRITTEN += ["out.ids.jsonl.tmp", "out.idx.tmp.offsets"]


def cases(names):
    """Each name for each link; under some names no file is taken for an input."""
    known = (".json", ".jsonl")
    return [(name, how) for name in names for how in LINKS if how != "itself" or name.endswith(known)]


@pytest.mark.parametrize(("name", "how"), cases(WRITTEN))
def test_tokenizing_never_over_an_input(name, how, corpus, tokenizer_model, tmp_path, in_process):
    place = tmp_path / name
    LINKS[how](corpus, place)
    read = corpus if corpus.exists() else place
    arguments = {"tokenizer_model": tokenizer_model, "form": Format(id_field="id")}
    with pytest.raises(
        ValueError, match=r"--output-prefix: .* would be written, and it is the input"
    ) as told:
        tokenize([read], tmp_path / "out", **arguments)
    assert "delete" not in str(told.value)
    assert read.read_bytes() == DOCUMENTS
    # The remedy: another prefix.
    card = tokenize([read], tmp_path / "other", **arguments)
    assert card["documents"] == 3 and read.read_bytes() == DOCUMENTS


def test_the_tokenizer_is_an_input_too(corpus, tokenizer_json, tmp_path):
    model = Path(shutil.copy(tokenizer_json, tmp_path / "tokenizer.json"))
    content = model.read_bytes()
    with pytest.raises(ValueError, match=r"it is the input .*tokenizer\.json: choose another"):
        tokenize([corpus], tmp_path / "tokenizer", tokenizer_model=model)
    assert model.read_bytes() == content


@pytest.mark.parametrize("through", ["folder", "link"])
def test_inputs_among_the_work_units_are_kept(through, tokenizer_model, tmp_path):
    """The folder is deleted at the end of the run."""
    (tmp_path / "real").mkdir()
    if through == "folder":
        (tmp_path / "out.units").mkdir()
    else:
        (tmp_path / "out.units").symlink_to(tmp_path / "real")
    file = tmp_path / "out.units" / "0123456789abcdef.jsonl"
    file.write_bytes(DOCUMENTS)
    read = file if through == "folder" else tmp_path / "real" / file.name
    with pytest.raises(ValueError, match="lies in .*units, which holds this run's work"):
        tokenize([read], tmp_path / "out", tokenizer_model=tokenizer_model)
    assert file.read_bytes() == DOCUMENTS


@pytest.mark.parametrize("name", ["out.ids.jsonl", "out.rejects.jsonl", "out.json", "out.json.tmp"])
def test_files_of_others_are_kept_and_moving_them_helps(name, corpus, tokenizer_model, tmp_path, in_process):
    (tmp_path / name).write_bytes(b"of another")
    arguments = {"tokenizer_model": tokenizer_model, "form": Format(id_field="id")}
    with pytest.raises(ValueError, match="move it away") as told:
        tokenize([corpus], tmp_path / "out", **arguments)
    assert "delete" not in str(told.value)
    (tmp_path / name).rename(tmp_path / "moved")
    assert tokenize([corpus], tmp_path / "out", **arguments)["documents"] == 3
    assert (tmp_path / "moved").read_bytes() == b"of another"


def test_deleting_what_the_message_names_frees_the_place(corpus, tokenizer_model, tmp_path, in_process):
    arguments = {"tokenizer_model": tokenizer_model, "form": Format(id_field="id")}
    tokenize([corpus], tmp_path / "out", **arguments)
    with pytest.raises(ValueError, match="eod_id was None, is 2") as told:
        tokenize([corpus], tmp_path / "out", append_eod=True, **arguments)
    named = str(told.value).split("or delete ")[1].removesuffix(" to begin anew").split(", ")
    assert {Path(name).suffix for name in named} == {".json", ".bin", ".idx", ".jsonl"}
    for name in named:
        Path(name).unlink()
    assert tokenize([corpus], tmp_path / "out", append_eod=True, **arguments)["eod_id"] == 2


@pytest.mark.parametrize(("name", "how"), cases(["tok.vocab", "tok.model.json", "tok.model"]))
def test_training_a_tokenizer_never_over_an_input(name, how, corpus, tmp_path):
    place = tmp_path / name
    LINKS[how](corpus, place)
    read = corpus if corpus.exists() else place
    with pytest.raises(ValueError, match=r"--output-prefix: .* would be written, and it is the input"):
        train_tokenizer([read], tmp_path / "tok", vocab_size=280)
    assert read.read_bytes() == DOCUMENTS


@pytest.mark.parametrize("end", [".vocab", ".model.json"])
def test_training_a_tokenizer_keeps_files_of_others(end, corpus, tmp_path):
    (tmp_path / f"tok{end}").write_bytes(b"of another")
    with pytest.raises(ValueError, match="move it away"):
        train_tokenizer([corpus], tmp_path / "tok", vocab_size=270)
    assert (tmp_path / f"tok{end}").read_bytes() == b"of another"


@pytest.mark.parametrize("end", [".bin", ".bin.tmp", ".idx.tmp", ".json", ".ids.jsonl"])
def test_merging_never_over_a_data_set(end, data_set, tmp_path):
    os.link(f"{data_set}.bin", tmp_path / f"out{end}")
    before = Path(f"{data_set}.bin").read_bytes()
    with pytest.raises(ValueError, match=rf"out{end} would be written, and it is the input .*web\.bin"):
        merge_data_sets([data_set], tmp_path / "out")
    assert Path(f"{data_set}.bin").read_bytes() == before
    merge_data_sets([data_set], tmp_path / "other")


def test_merging_units_never_over_their_plan_or_the_corpus(tokenizer_model, tmp_path, in_process):
    corpus = tmp_path / "corpus.json"
    corpus.write_bytes(DOCUMENTS)
    tokenize([corpus], tmp_path / "out", tokenizer_model=tokenizer_model, world_size=2)
    units = tmp_path / "out.units"
    for prefix, name in ((units / "plan", "plan.json"), (tmp_path / "corpus", "corpus.json")):
        with pytest.raises(ValueError, match=rf"it is the input .*{name}"):
            merge_units(units, prefix)
    assert corpus.read_bytes() == DOCUMENTS
    merge_units(units, tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["web-long.bin.tmp", "web-short.json", "web-long.rejects.jsonl", "blend.txt"]
)
def test_upsampling_never_over_a_data_set(name, data_set, tmp_path):
    (tmp_path / "out").mkdir()
    os.link(f"{data_set}.idx", tmp_path / "out" / name)
    before = Path(f"{data_set}.idx").read_bytes()
    with pytest.raises(ValueError, match=rf"--output: .*{name} would be written, and it is the input"):
        upsample([data_set], tmp_path / "out", longer_than=10, long_share=0.5)
    assert Path(f"{data_set}.idx").read_bytes() == before
    assert os.listdir(tmp_path / "out") == [name]


@pytest.mark.parametrize("end", [".bin", ".idx", ".json"])
def test_blending_never_over_a_data_set(end, data_set, tmp_path):
    card = {"documents": 4, "tokens": 60, "file_bytes": {".bin": 120}}
    Path(f"{data_set}.json").write_text(json.dumps(card))
    before = Path(f"{data_set}{end}").read_bytes()
    (tmp_path / "link.txt").symlink_to(f"{data_set}{end}")
    for output in (
        Path(f"{data_set}{end}"),
        tmp_path / "link.txt",
        tmp_path / ".." / tmp_path.name / f"web{end}",
    ):
        with pytest.raises(ValueError, match="--output: .* would be written, and it is the input"):
            blend([str(data_set)], output)
    assert Path(f"{data_set}{end}").read_bytes() == before


def test_a_blend_replaces_a_blend_alone(data_set, tmp_path):
    (tmp_path / "notes.txt").write_text("of another\n")
    with pytest.raises(ValueError, match=r"notes\.txt is there already and is no blend: .* move it away"):
        blend([str(data_set)], tmp_path / "notes.txt")
    (tmp_path / "notes.txt").rename(tmp_path / "moved.txt")
    blend([str(data_set)], tmp_path / "notes.txt")
    blend([str(data_set)], tmp_path / "notes.txt")


def test_a_histogram_is_a_picture_beside_the_data(data_set, tmp_path):
    before = Path(f"{data_set}.bin").read_bytes()
    os.link(f"{data_set}.bin", tmp_path / "link.png")
    with pytest.raises(ValueError, match="--histogram: .* would be written, and it is the input"):
        inspect(data_set, histogram=tmp_path / "link.png")
    with pytest.raises(ValueError, match=r"--histogram .*a\.txt: .* \.png"):
        inspect(data_set, histogram=tmp_path / "a.txt")
    assert Path(f"{data_set}.bin").read_bytes() == before


def test_a_file_has_one_key_under_all_its_names(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    os.link(tmp_path / "a", tmp_path / "c")
    keys = {file_key(path) for path in (tmp_path / "a", tmp_path / "b", f"file://{tmp_path}/c")}
    assert len(keys) == 1 and None not in keys
    assert file_key(tmp_path / "none") is file_key("s3://bucket/a") is None


def test_a_data_set_twice_under_two_names(data_set, tmp_path):
    for end in (".bin", ".idx"):
        os.link(f"{data_set}{end}", tmp_path / f"other{end}")
    for refused in (
        lambda: refuse_twice([data_set, tmp_path / "other"]),
        lambda: merge_data_sets([data_set, tmp_path / "other"], tmp_path / "out"),
        lambda: blend([str(data_set), str(tmp_path / "other")], tmp_path / "blend.txt"),
        lambda: upsample([data_set, tmp_path / "other"], tmp_path / "out", longer_than=10, long_share=0.5),
    ):
        with pytest.raises(ValueError, match="other: named twice.*leave it out"):
            refused()


@pytest.mark.parametrize("prefix", ["x.bin", "a/x.idx", ".", "a/..", "x.bin.bin"])
def test_a_prefix_with_an_ending(prefix, corpus, tokenizer_model):
    with pytest.raises(ValueError, match="--output-prefix"):
        tokenize([corpus], Path(prefix), tokenizer_model=tokenizer_model)
    with pytest.raises(ValueError, match="give x$"):
        check_prefix(Path("x.bin"), (".bin", ".idx"), "--output-prefix")
    with pytest.raises(ValueError, match=r"\.model is appended to it: give x$"):
        train_tokenizer([corpus], Path("x.model"), vocab_size=280)


def test_every_file_that_is_written_is_known(corpus, tokenizer_model, tmp_path, monkeypatch, in_process):
    """Or one of them could lie over an input."""
    import builtins

    written = set()
    real = builtins.open

    def watch(file, mode="r", *arguments, **options):
        if isinstance(file, Path) and set(mode) & set("wa+") and f"-{os.getpid()}." not in file.name:
            written.add(file)
        return real(file, mode, *arguments, **options)

    monkeypatch.setattr(builtins, "open", watch)
    arguments = {"tokenizer_model": tokenizer_model, "form": Format(id_field="id"), "max_bad_share": 1}
    corpus.write_bytes(DOCUMENTS + b"bad\n")
    tokenize([corpus], tmp_path / "out", stop_on_bad_record=False, **arguments)
    assert len(written) > 4
    of_units = {file for file in written if file.parent.name == "out.units"}
    assert written - of_units <= set(data_set_files(tmp_path / "out"))
