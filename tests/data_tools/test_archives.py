"""Compressed streams read in small and large parts, and the signs by which files are known."""

import bz2
import gzip
import io
import lzma
import random

import pytest

from data_tools.archives import COMPRESSIONS, DAMAGE, MAGIC, decompress, sniff

PACK = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}
CONTENTS = {
    "nothing": b"",
    "byte": b"a",
    "text": b"some words " * 1000,
    "zeros": bytes(300_000),
    "noise": random.Random(0).randbytes(200_000),
}


@pytest.mark.parametrize("how", PACK)
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("part", [1 << 10, 1 << 20])
def test_what_was_packed_comes_out(how, content, part, monkeypatch):
    """Whatever the size of reads, and of several streams in one file."""
    monkeypatch.setattr("data_tools.archives.READ_BYTES", part)
    packed = PACK[how](content)
    assert decompress(io.BytesIO(packed + packed + bytes(5)), how).read() == content * 2
    reader = decompress(io.BytesIO(packed), how)
    assert b"".join(iter(lambda: reader.read(777), b"")) == content


@pytest.mark.parametrize("how", PACK)
@pytest.mark.parametrize("lost", [1, 5, 9])
def test_an_end_that_is_missing_is_an_error(how, lost):
    packed = PACK[how](CONTENTS["text"])
    with pytest.raises(DAMAGE):
        decompress(io.BytesIO(packed[:-lost]), how).read()
    with pytest.raises(DAMAGE):
        decompress(io.BytesIO(packed + packed[:-lost]), how).read()


@pytest.mark.parametrize("how", PACK)
def test_signs(how):
    assert sniff(PACK[how](b"a")[:20]) == sniff(PACK[how](b"")[:20]) == how
    assert sniff(b'{"text": "a"}') is sniff(b"") is None
    assert set(COMPRESSIONS) == set(MAGIC) - {"parquet"}
