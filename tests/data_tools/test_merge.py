"""Data sets one after the other: every byte kept, mismatches refused."""

import errno
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest

from data_tools import merge as module
from data_tools.blend import blend
from data_tools.indexed import open_indexed, write_index
from data_tools.merge import is_units_folder, merge_data_sets, merge_units
from data_tools.tokenize import tokenize
from data_tools.verify import verify
from tests.world import ROOT


@pytest.fixture
def two(tokenizer_model, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text("".join(f'{{"text": "{name} {i}"}}\n' for i in range(50)))
        tokenize(
            [tmp_path / f"{name}.jsonl"], tmp_path / name, tokenizer_model=tokenizer_model, append_eod=True
        )
    return [tmp_path / "a", tmp_path / "b"]


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "read-and-write"])
def test_merged_is_tokenized_together(two, kernel, tokenizer_model, tmp_path, monkeypatch):
    if not kernel:

        def refuse(*_):
            raise OSError(errno.EXDEV, "across file systems")

        monkeypatch.setattr(os, "copy_file_range", refuse)
    content = merge_data_sets(two, tmp_path / "out")
    inputs = [prefix.with_suffix(".jsonl") for prefix in two]
    tokenize(inputs, tmp_path / "together", tokenizer_model=tokenizer_model, append_eod=True)
    for end in (".bin", ".idx"):
        assert (tmp_path / f"out{end}").read_bytes() == (tmp_path / f"together{end}").read_bytes()
    verify(tmp_path / "out")
    assert merge_data_sets(two, tmp_path / "out") == content
    with pytest.raises(
        ValueError,
        match=r"out\.json was made from something else .*delete .*out\.json, .*out\.bin, .*out\.idx",
    ):
        merge_data_sets(two[::-1], tmp_path / "out")


def test_more_data_sets_than_open_files(two, tmp_path):
    """10 TB are 10,000 units, and many machines allow 1024 open files."""
    many = [tmp_path / f"many{number}" for number in range(80)]
    for prefix in many:
        for end in (".bin", ".idx", ".json"):
            shutil.copy(f"{two[0]}{end}", f"{prefix}{end}")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 30, limits[1]))
    try:
        assert merge_data_sets(many, tmp_path / "out")["documents"] == 80 * 50
        blend([str(prefix) for prefix in many], tmp_path / "blend.txt")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    verify(tmp_path / "out")


def test_four_hundred_parts_with_few_open_files(two, tmp_path):
    """Through the command, as a job has it: their number does not matter, ids and bad records included."""
    many = [tmp_path / f"many{number}" for number in range(400)]
    for prefix in many:
        for end in (".bin", ".idx", ".json"):
            os.link(f"{two[0]}{end}", f"{prefix}{end}")
        os.unlink(f"{prefix}.bin")  # or they would be one data set under many names
        shutil.copy(f"{two[0]}.bin", f"{prefix}.bin")
    command = [sys.executable, "-m", "data_tools", "merge", *many, "--output-prefix", tmp_path / "out"]
    run = subprocess.run(
        ["bash", "-c", 'ulimit -n 40; exec "$@"', "bash", *command],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert open_indexed(tmp_path / "out").documents == 400 * 50


def test_data_sets_without_documents(two, tmp_path):
    """Beside others they add nothing; alone they are refused."""
    write_index(tmp_path / "empty.idx", np.dtype(np.uint16), [])
    (tmp_path / "empty.bin").touch()
    assert merge_data_sets([tmp_path / "empty", *two], tmp_path / "out")["documents"] == 100
    with pytest.raises(ValueError, match="there is no document in these files"):
        merge_data_sets([tmp_path / "empty"], tmp_path / "none")


@pytest.mark.parametrize("done", [[0], [2], [0, 2], [1]])
def test_ranks_with_a_gap(done, tokenizer_model, tmp_path, in_process):
    """What is missing is named, and made by the same command; nothing is merged before."""
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f'{{"text": "{i}"}}\n' for i in range(100)))
    arguments = {"tokenizer_model": tokenizer_model, "unit_size": 400, "world_size": 3}
    for rank in done:
        tokenize([path], tmp_path / "out", rank=rank, **arguments)
    with pytest.raises(ValueError, match=r"units are not done \(.*run `phd data tokenize`"):
        merge_units(tmp_path / "out.units", tmp_path / "out")
    assert not (tmp_path / "out.bin").exists()
    for rank in range(3):
        tokenize([path], tmp_path / "out", rank=rank, **arguments)
    assert merge_units(tmp_path / "out.units", tmp_path / "out")["documents"] == 100


def test_ids_of_others_are_not_taken_along(two, tmp_path):
    """A file that is called like a data set's ids is one only if its card says so."""
    for prefix in two:
        prefix.with_name(f"{prefix.name}.ids.jsonl").write_text("precious\n")
    merge_data_sets(two, tmp_path / "out")
    assert not (tmp_path / "out.ids.jsonl").exists()


def test_the_same_data_sets_through_links_are_no_others(two, tmp_path):
    card = merge_data_sets(two, tmp_path / "out")
    for end in (".bin", ".idx", ".json"):
        (tmp_path / f"link{end}").symlink_to(f"{two[0]}{end}")
    (tmp_path / "folder").symlink_to(tmp_path)
    assert merge_data_sets([tmp_path / "link", two[1]], tmp_path / "out") == card
    assert merge_data_sets([tmp_path / "folder" / "a", two[1]], tmp_path / "out") == card


def test_merging_the_merged(two, tmp_path):
    merge_data_sets(two, tmp_path / "out")
    card = merge_data_sets([tmp_path / "out", two[0]], tmp_path / "twice")
    assert card["documents"] == 150
    assert len(card["segments"]) == 3
    verify(tmp_path / "twice")


def test_megatrons_own_with_several_sequences_a_document(tmp_path):
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    generator = np.random.default_rng(0)
    reference = IndexedDatasetBuilder(str(tmp_path / "all.bin"), dtype=np.int32)
    for name in "ab":
        builder = IndexedDatasetBuilder(str(tmp_path / f"{name}.bin"), dtype=np.int32)
        for _ in range(5):
            lengths = generator.integers(1, 6, 3).tolist()
            builder.add_document(np.arange(sum(lengths)), lengths)
        builder.finalize(str(tmp_path / f"{name}.idx"))
        reference.add_index(str(tmp_path / name))
    reference.finalize(str(tmp_path / "all.idx"))
    card = merge_data_sets([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    for end in (".bin", ".idx"):
        assert (tmp_path / f"out{end}").read_bytes() == (tmp_path / f"all{end}").read_bytes()
    assert open_indexed(tmp_path / "out").documents == card["documents"] == 10
    verify(tmp_path / "out")  # with the checksums made on the way


def test_other_tokenizers_are_refused(two, tokenizer_json, tmp_path):
    tokenize([tmp_path / "a.jsonl"], tmp_path / "c", tokenizer_model=tokenizer_json)
    with pytest.raises(ValueError, match="were made with different tokenizers"):
        merge_data_sets([two[0], tmp_path / "c"], tmp_path / "out")


def test_other_types_are_refused(two, tmp_path):
    from data_tools.indexed import write_index

    np.arange(3, dtype=np.int32).tofile(tmp_path / "c.bin")
    write_index(tmp_path / "c.idx", np.dtype(np.int32), [np.array([3], np.int32)])
    with pytest.raises(ValueError, match=r"c holds int32, .*a uint16"):
        merge_data_sets([two[0], tmp_path / "c"], tmp_path / "out")


def test_a_full_disk_is_seen_before(two, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: module.shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(OSError, match="bytes and 0 are free"):
        merge_data_sets(two, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_files_of_another_tool_are_kept(two, tmp_path):
    (tmp_path / "out.bin").write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"out\.bin is there already and no card"):
        merge_data_sets(two, tmp_path / "out")
    assert (tmp_path / "out.bin").read_bytes() == b"precious"


def test_stopped_before_its_card_a_merge_is_done_again(two, tmp_path, stopped_before):
    with stopped_before("out.json"):
        merge_data_sets(two, tmp_path / "out")
    assert (tmp_path / "out.idx").exists() and not (tmp_path / "out.json").exists()
    merge_data_sets(two, tmp_path / "out")
    verify(tmp_path / "out")


def test_no_data_set_twice_and_none_over_itself(two, tmp_path):
    for end in (".bin", ".idx"):
        (tmp_path / f"link{end}").symlink_to(tmp_path / f"a{end}")
    for again in (two[0], tmp_path / ".." / tmp_path.name / "a", tmp_path / "link"):
        with pytest.raises(ValueError, match="named twice"):
            merge_data_sets([two[0], again], tmp_path / "out")
    two[0].with_suffix(".json").unlink()
    with pytest.raises(ValueError, match=r"--output-prefix: .*a\.bin would be written, and it is the input"):
        merge_data_sets(two, two[0])


def test_control_tokens_are_told_on_and_different_ones_refused(two, tokenizer_model, tmp_path):
    card = merge_data_sets(two, tmp_path / "out")
    assert (card["eod_id"], card["bos_id"]) == (2, None)
    tokenize([tmp_path / "a.jsonl"], tmp_path / "c", tokenizer_model=tokenizer_model)
    with pytest.raises(ValueError, match=r"out and .*c begin or end .* \(eod_id 2 and None\)"):
        merge_data_sets([tmp_path / "out", tmp_path / "c"], tmp_path / "more")
    (tmp_path / "c.json").unlink()
    assert "eod_id" not in merge_data_sets([tmp_path / "out", tmp_path / "c"], tmp_path / "more")


def test_a_vocabulary_that_no_card_tells_is_left_out(two, tmp_path, capsys):
    for prefix in two:
        prefix.with_suffix(".json").rename(prefix.with_suffix(".kept"))
    assert "vocab_size" not in merge_data_sets(two, tmp_path / "out")
    verify(tmp_path / "out")
    assert "the vocabulary is not known" in capsys.readouterr().out
    two[0].with_suffix(".kept").rename(two[0].with_suffix(".json"))
    assert merge_data_sets([tmp_path / "out", two[0]], tmp_path / "more")["vocab_size"] == 600


def test_units_that_were_merged_and_deleted(tokenizer_model, tmp_path, capsys):
    """The job that merges, queued again: while it was deleting, or after."""
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "a"}\n' * 9)
    tokenize([path], tmp_path / "out", tokenizer_model=tokenizer_model, world_size=2)  # one unit, of rank 0
    units = tmp_path / "out.units"
    card = merge_units(units, tmp_path / "out")
    assert merge_units(units, tmp_path / "out") == card
    (units / "plan.json").unlink()
    assert merge_units(units, tmp_path / "out") == card
    shutil.rmtree(units)
    assert merge_units(units, tmp_path / "out") == card
    assert f"{tmp_path / 'out'} is whole" in capsys.readouterr().out
    assert is_units_folder(units) and not is_units_folder(tmp_path / "out")
    with pytest.raises(ValueError, match="no folder of work units"):
        merge_units(tmp_path / "other.units", tmp_path / "out")
    (tmp_path / "out.bin").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"out\.bin holds 4 bytes"):
        merge_units(units, tmp_path / "out")
