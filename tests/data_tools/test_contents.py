"""A touched input is the same input; one with other content is not, whatever its size and time."""

import gzip
import os

import pyarrow
import pytest
from pyarrow import parquet

from data_tools.files import crc32
from data_tools.tokenize import tokenize

LINES = b"".join(b'{"text": "document %d"}\n' % number for number in range(100))


def write(path, content=LINES):
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.table({"text": ["a", "b"]}), path)
    else:
        path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.txt", "in.parquet"])
@pytest.mark.parametrize("unit_size", [500, None])
def test_touched(name, unit_size, tokenizer_model, tmp_path, in_process, capsys):
    path = write(tmp_path / name)
    arguments = {"tokenizer_model": tokenizer_model, "unit_size": unit_size}
    card = tokenize([path], tmp_path / "out", **arguments)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)  # another inode too, as after a copy from elsewhere
    os.utime(path, ns=(1, 1))
    assert tokenize([path], tmp_path / "out", **arguments) == card
    assert "has another time, and the content that was tokenized" in capsys.readouterr().out


@pytest.mark.parametrize("place", [10, 1000, -3])
def test_other_content_of_the_same_size(place, tokenizer_model, tmp_path, in_process):
    path = write(tmp_path / "in.jsonl")
    arguments = {"tokenizer_model": tokenizer_model, "unit_size": 500}
    tokenize([path], tmp_path / "out", **arguments)
    content = bytearray(LINES)
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"out\.json was made from something else .*has other content now"):
        tokenize([path], tmp_path / "out", **arguments)
    # Back again: the same content, at another time.
    write(path)
    tokenize([path], tmp_path / "out", **arguments)


def test_some_of_several(tokenizer_model, tmp_path, in_process):
    paths = [write(tmp_path / f"{name}.jsonl") for name in "abc"]
    card = tokenize(paths, tmp_path / "out", tokenizer_model=tokenizer_model)
    os.utime(paths[1], ns=(1, 1))
    assert tokenize(paths, tmp_path / "out", tokenizer_model=tokenizer_model) == card
    with pytest.raises(ValueError, match="inputs was"):
        tokenize(paths[:2], tmp_path / "out", tokenizer_model=tokenizer_model)


def test_a_range_has_its_own_checksum(tmp_path):
    path = write(tmp_path / "in.jsonl")
    (tmp_path / "part").write_bytes(LINES[7:1000])
    assert crc32(path, 7, 1000) == crc32(tmp_path / "part")
    assert crc32(path) == crc32(path, 0, len(LINES))
