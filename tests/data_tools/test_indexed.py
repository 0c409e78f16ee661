"""The .idx is byte for byte what Megatron's builder writes, and Megatron reads it."""

import numpy as np
import pytest

from data_tools.indexed import HEADER, MAGIC, open_indexed, token_dtype, write_index
from data_tools.inspect import inspect
from data_tools.pack import pack
from data_tools.verify import verify


def megatron_pair(prefix, documents, dtype):
    """Written by Megatron: documents are lists of sequences."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype.type)
    for sequences in documents:
        builder.add_document(np.concatenate(sequences), [len(sequence) for sequence in sequences])
    builder.finalize(f"{prefix}.idx")


@pytest.mark.parametrize("vocab_size", [100, 65_499, 65_500, 200_000])
def test_dtype_is_megatrons(vocab_size):
    from megatron.core.datasets.indexed_dataset import DType

    assert token_dtype(vocab_size) == DType.optimal_dtype(vocab_size)


@pytest.mark.parametrize("block", [1, 3, 100])
@pytest.mark.parametrize("split", [False, True], ids=["one-sequence", "sentences"])
def test_same_bytes_as_megatron(block, split, tmp_path, monkeypatch):
    monkeypatch.setattr("data_tools.indexed.BLOCK", block)
    generator = np.random.default_rng(0)
    dtype = token_dtype(60_000 if split else 70_000)
    documents = [
        [
            generator.integers(0, 60_000, generator.integers(1, 9))
            for _ in range(generator.integers(1, 4) if split else 1)
        ]
        for _ in range(50)
    ]
    megatron_pair(tmp_path / "theirs", documents, dtype)
    lengths = np.array([len(sequence) for document in documents for sequence in document], np.int32)
    ends = np.cumsum([len(document) for document in documents])
    blocks = (lengths[i : i + block] for i in range(0, len(lengths), block))
    write_index(tmp_path / "ours.idx", dtype, blocks, [ends[:7], ends[7:]] if split else None)
    assert (tmp_path / "ours.idx").read_bytes() == (tmp_path / "theirs.idx").read_bytes()
    assert not list(tmp_path.glob("*.offsets"))

    opened = open_indexed(tmp_path / "theirs")
    assert opened.documents == 50
    assert opened.tokens == lengths.sum()
    assert opened.document_lengths().tolist() == [sum(map(len, document)) for document in documents]
    assert opened.read(2).tolist() == [s for d in documents for s in d][2].tolist()
    assert opened.read(2, 1).tolist() == [s for d in documents for s in d][2].tolist()[:1]


def test_empty(tmp_path):
    (tmp_path / "a.bin").touch()
    write_index(tmp_path / "a.idx", token_dtype(9), [])
    assert open_indexed(tmp_path / "a").documents == 0


def test_unknown_dtype(tmp_path):
    (tmp_path / "a.bin").touch()
    write_index(tmp_path / "a.idx", token_dtype(9), [])
    content = bytearray((tmp_path / "a.idx").read_bytes())
    content[17] = 99
    (tmp_path / "a.idx").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.idx speaks of a data type 99"):
        open_indexed(tmp_path / "a")


def header(sequences, documents, dtype=8):
    return HEADER.pack(MAGIC, 1, dtype, sequences, documents)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (header(0, 0), "has no document entries"),
        (header(1, 0) + np.int32(1).tobytes() + np.int64(0).tobytes(), "has no document entries"),
        (
            header(2, 1) + np.array([5, -4], np.int32).tobytes() + np.array([0, 10, 0], np.int64).tobytes(),
            "a sequence of -4 tokens",
        ),
        (header(2**62, 1), "speaks of"),
        (header(1, 2, dtype=99), "data type 99"),
    ],
    ids=["nothing", "no-entries", "negative", "huge", "type"],
)
def test_an_index_that_is_none(index, message, tmp_path):
    """One line, in whatever command reads it."""
    (tmp_path / "a.idx").write_bytes(index)
    np.zeros(1, np.uint16).tofile(tmp_path / "a.bin")
    for read in (open_indexed, verify, inspect, lambda prefix: pack(prefix, [8])):
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "a")


@pytest.mark.parametrize("documents", [[0, 3], [1, 2], [0, 2, 1, 2], [0, -1, 2]])
def test_documents_that_do_not_cover_the_sequences(documents, tmp_path):
    index = (
        header(2, len(documents))
        + np.array([1, 1], np.int32).tobytes()
        + np.array([0, 2, *documents], np.int64).tobytes()
    )
    (tmp_path / "a.idx").write_bytes(index)
    np.zeros(2, np.uint16).tofile(tmp_path / "a.bin")
    for read in (inspect, lambda prefix: pack(prefix, [8])):
        with pytest.raises(ValueError, match="do not cover the sequences in order"):
            read(tmp_path / "a")
