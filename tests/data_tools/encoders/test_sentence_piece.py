"""Unusual SentencePiece models: where gigatoken would differ, or a cut, the reference does the work."""

import random

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from data_tools.encoders import load_encoder
from tests.data_tools.encoders.test_hugging_face import random_texts

Piece = sentencepiece_model_pb2.ModelProto.SentencePiece


def write_model(path, pieces, *, dummy_prefix=False, byte_fallback=True):
    """A BPE of ``pieces``, (piece, score, type), and of the letters in them."""
    proto = sentencepiece_model_pb2.ModelProto()
    first = [("<unk>", 0, Piece.UNKNOWN), ("<s>", 0, Piece.CONTROL), ("</s>", 0, Piece.CONTROL)]
    if byte_fallback:
        first += [(f"<0x{byte:02X}>", 0, Piece.BYTE) for byte in range(256)]
    letters = [(letter, -1000 - index, Piece.NORMAL) for index, letter in enumerate("abc\u2581.")]
    for piece, score, kind in (*first, *pieces, *letters):
        proto.pieces.add(piece=piece, score=score, type=kind)
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.byte_fallback = byte_fallback
    proto.normalizer_spec.add_dummy_prefix = dummy_prefix
    proto.normalizer_spec.remove_extra_whitespaces = False
    path.write_bytes(proto.SerializeToString())
    return path


def merged(seed):
    """Random pieces, each of two others."""
    generator, pieces = random.Random(seed), list("abc\u2581.")
    for _ in range(30):
        piece = generator.choice(pieces) + generator.choice(pieces)
        if piece not in pieces and len(piece) < 7:
            pieces.append(piece)
    return pieces[5:]


def same_ids(path, texts, limit=1 << 22):
    encoder = load_encoder(path)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text, ids in zip(texts, encoder.encode(texts, limit), strict=True):
        assert ids.tolist() == reference.encode(text), text
    return encoder


@pytest.mark.parametrize("kind", ["distinct", "same-scores", "unused"])
def test_only_models_that_gigatoken_merges_alike_are_fast(kind, tmp_path):
    for seed in range(10):
        pieces = [
            (
                piece,
                -(index // 3 if kind == "same-scores" else index),
                Piece.UNUSED if kind == "unused" and not index % 4 else Piece.NORMAL,
            )
            for index, piece in enumerate(merged(seed))
        ]
        path = write_model(tmp_path / "a.model", pieces)
        assert same_ids(path, [*random_texts("abc  \u2581.\n", 200)]).is_fast == (kind == "distinct")


@pytest.mark.parametrize("dummy_prefix", [False, True])
@pytest.mark.parametrize("symbol", ["a b", " b", "\u2581b", "b "])
def test_symbols_with_spaces_are_found_in_the_whole_text(symbol, dummy_prefix, tmp_path):
    path = write_model(tmp_path / "a.model", [(symbol, 0, Piece.USER_DEFINED)], dummy_prefix=dummy_prefix)
    same_ids(path, ["c" * extra + "a b c a  b ca b" * 3 for extra in range(9)], limit=4)


def test_unknown_characters_are_counted(tmp_path):
    encoder = load_encoder(write_model(tmp_path / "a.model", [], byte_fallback=False))
    text = "a\u6f22b \u5b57"
    (ids,) = encoder.encode([text])
    assert encoder.unknown(text, ids) == 2
    with_bytes = load_encoder(write_model(tmp_path / "b.model", []))
    assert with_bytes.unknown(text, with_bytes.encode([text])[0]) == 0
