"""What --input names, and in which order."""

from pathlib import Path

import pytest

from data_tools.inputs import find_sources


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
        ("a/x.csv", ValueError, r"x\.csv: expected one of \.jsonl, \.jsonl\.gz"),
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
    with pytest.raises(FileNotFoundError, match="no .jsonl.* file in this folder"):
        find_sources([tmp_path / "empty"])
    with pytest.raises(ValueError, match=r"b\.jsonl: named twice"):
        find_sources([folder, folder / "b.jsonl"])
