"""What --input names, and in which order."""

import os
from pathlib import Path

import pytest

from data_tools.inputs import find_sources, open_named, read_list


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jsonl", "a/c.jsonl.gz", "a/b.parquet", "a/x.csv", ".hidden/d.txt", "a/.e.txt", "A.TXT"):
        file = tmp_path / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return tmp_path / "in"


def names(sources, folder):
    return [str(Path(source.path).relative_to(folder)) for source in sources]


def test_folder_pattern_file_in_their_order(folder):
    assert names(find_sources([folder]), folder) == ["A.TXT", "a/b.parquet", "a/c.jsonl.gz", "b.jsonl"]
    assert names(find_sources([f"{folder}/**/*.jsonl*"]), folder) == ["a/c.jsonl.gz", "b.jsonl"]
    assert names(find_sources([folder / "b.jsonl", folder / "a"]), folder) == [
        "b.jsonl", "a/b.parquet", "a/c.jsonl.gz",
    ]  # fmt: skip
    kinds = [(source.kind, source.compression) for source in find_sources([folder])]
    assert kinds == [("txt", None), ("parquet", None), ("jsonl", "gz"), ("jsonl", None)]


def test_what_a_folder_leaves_out_is_told(folder, tmp_path, capsys):
    for name in ("a/y.jsonl.lz4", "a/z.CSV", "README", "a/v1.2.md", "b.json", "b.json.gz", "b.json.zst"):
        (folder / name).write_text(name)
    assert {"b.json", "b.json.gz", "b.json.zst"} < {*names(find_sources([folder]), folder)}
    told = "7 files, left out: 2 .csv, 1 .jsonl.lz4, 1 .md, 2 hidden, 1 without a suffix"
    assert capsys.readouterr().out == f"--input {folder}: {told}\n"
    find_sources([f"file://{folder}"])
    assert told.split(",")[1] in capsys.readouterr().out
    find_sources([f"{folder}/b.*"])
    assert capsys.readouterr().out == ""
    find_sources([f"{folder}/[aA]*"])
    assert "1 files, left out: 1 folders" in capsys.readouterr().out


def test_links_to_folders_are_followed_once(folder, tmp_path, capsys):
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "d.jsonl").write_text("d")
    (tmp_path / "else" / "back").symlink_to(folder)
    (folder / "linked").symlink_to(tmp_path / "else")
    (folder / "a" / "up").symlink_to(folder)
    found = names(find_sources([folder]), folder)
    assert found == ["A.TXT", "a/b.parquet", "a/c.jsonl.gz", "b.jsonl", "linked/d.jsonl"]
    assert "2 linked again" in capsys.readouterr().out


def test_what_these_tools_write_beside_the_inputs_is_no_input(folder, capsys):
    """Or a run with its output in the folder of the inputs could not go on."""
    before = names(find_sources([folder]), folder)
    ours = ("out.bin", "out.json", "out.ids.jsonl", "out.rejects.jsonl", "t.model", "t.model.json")
    for name in (*ours, "o.units/plan.json", "o.units/12.json", "o.units/12.rejects.jsonl"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    capsys.readouterr()
    assert names(find_sources([folder]), folder) == before
    assert "1 .bin, 1 .csv, 1 .model, 2 hidden, 7 written by phd data" in capsys.readouterr().out


def test_a_folder_that_cannot_be_read_is_an_error(folder, monkeypatch):
    real = os.scandir

    def refuse(path):
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="/a"):
        find_sources([folder])


def test_a_file_under_several_names_is_read_once(folder, tmp_path, capsys):
    """In a folder or a pattern it is told; named by two inputs it is refused."""
    (folder / "c.jsonl").symlink_to(folder / "b.jsonl")
    (folder / "a" / "d.jsonl").hardlink_to(folder / "b.jsonl")
    found = names(find_sources([folder]), folder)
    assert found == ["A.TXT", "a/b.parquet", "a/c.jsonl.gz", "a/d.jsonl"]
    assert "2 linked again" in capsys.readouterr().out
    assert names(find_sources([f"{folder}/[bc].jsonl"]), folder) == ["b.jsonl"]
    assert "1 files, left out: 1 linked again" in capsys.readouterr().out
    (tmp_path / "other.jsonl").symlink_to(folder / "b.jsonl")
    for again in (folder / "c.jsonl", tmp_path / "other.jsonl", f"file://{folder}/c.jsonl", folder):
        with pytest.raises(ValueError, match=r"named twice, .*\(it is .*b\.jsonl\)"):
            find_sources([folder / "b.jsonl", again])


def test_a_pipe_in_a_folder_is_left_out(folder, capsys):
    """To read it would wait for ever."""
    os.mkfifo(folder / "pipe.jsonl")
    assert names(find_sources([folder]), folder) == ["A.TXT", "a/b.parquet", "a/c.jsonl.gz", "b.jsonl"]
    assert "1 no files (pipes, devices)" in capsys.readouterr().out


def test_every_kind_with_every_compression(tmp_path):
    for name in ("a.ndjson", "b.NDJSON.GZ", "c.txt.gz", "d.txt.xz", "e.jsonl.bz2", "f.json.xz", "g.txt.zst"):
        (tmp_path / name).write_text(name)
    found = [(source.kind, source.compression) for source in find_sources([tmp_path])]
    assert found == [
        ("jsonl", None), ("jsonl", "gz"), ("txt", "gz"), ("txt", "xz"), ("jsonl", "bz2"), ("json", "xz"),
        ("txt", "zst"),
    ]  # fmt: skip


def test_a_list_of_inputs(folder, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_bytes(b"\xef\xbb\xbf" + f"{folder}/b.jsonl\r\n\n{folder}/a\n{folder}/*.TXT".encode())
    found = names(find_sources(read_list(listed)), folder)
    assert found == ["b.jsonl", "a/b.parquet", "a/c.jsonl.gz", "A.TXT"]
    listed.write_text(f"{folder}/b.jsonl\n{folder}/none.jsonl\n")
    with pytest.raises(FileNotFoundError, match=r"--input-list .*list\.txt, line 2: .*none.jsonl: there is"):
        read_list(listed)
    listed.write_text("\n")
    with pytest.raises(ValueError, match="it names no input"):
        read_list(listed)


def test_what_a_store_raises_names_the_input(folder, monkeypatch):
    import fsspec

    (source,) = find_sources([f"file://{folder}/b.jsonl"])

    def fail(*_, **__):
        raise RuntimeError("no credentials")

    monkeypatch.setattr(fsspec, "open", fail)
    with pytest.raises(ValueError, match=r"--input file://.*b\.jsonl: RuntimeError: no credentials"):
        open_named(source)
    monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
    with pytest.raises(ValueError, match=r"--input file://.*: no credentials"):
        find_sources([f"file://{folder}/b.jsonl"])


def test_identity_changes_with_the_file(folder):
    before = find_sources([folder / "b.jsonl"])[0].identity()
    assert find_sources([folder / "b.jsonl"])[0].identity() == before
    (folder / "b.jsonl").write_text("something longer")
    assert find_sources([folder / "b.jsonl"])[0].identity() != before


def test_urls_go_through_fsspec(folder):
    (source,) = find_sources([f"file://{folder}/b.jsonl"])
    assert source.path == f"file://{folder}/b.jsonl"
    with source.open() as file:
        assert file.read() == b"b.jsonl"
    assert len(find_sources([f"file://{folder}"])) == 4
    assert len(find_sources([f"file://{folder}/*.jsonl"])) == 1


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("none.jsonl", FileNotFoundError, "none.jsonl: there is no such file"),
        ("*.none", FileNotFoundError, "no file matches"),
        ("a/x.csv", ValueError, r"x\.csv: expected one of \.jsonl, \.ndjson.*\.bz2"),
        ("file://IN/none.jsonl", FileNotFoundError, "there is no such file"),
        ("nonsense://a/b.jsonl", ValueError, "nonsense"),
    ],
)
def test_refused(name, error, message, folder):
    path = name.replace("IN", str(folder)) if "://" in name else f"{folder}/{name}"
    with pytest.raises(error, match=message):
        find_sources([path])


def test_empty_folder_and_twice(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no file in this folder ends with one of .jsonl"):
        find_sources([tmp_path / "empty"])
    with pytest.raises(ValueError, match=r"b\.jsonl: named twice"):
        find_sources([folder, folder / "b.jsonl"])
