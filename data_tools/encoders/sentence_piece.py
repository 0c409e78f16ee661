"""SentencePiece models."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_tools.encoders.base import Encoder
from data_tools.files import sha256


class SentencePieceEncoder(Encoder):
    """A .model. Fast, and cut, if it is BPE with byte fallback that leaves the text as it is."""

    loses_space_mark = True

    def __init__(self, path: Path, *, fast: bool) -> None:
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2

        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"--tokenizer-model {path}: not a SentencePiece model ({error})") from error
        proto = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
        self.vocab_size, self.sha256 = len(self._processor), sha256(path)
        kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
        special = (kinds.CONTROL, kinds.USER_DEFINED, kinds.UNKNOWN)
        self.specials = {
            piece.piece: index for index, piece in enumerate(proto.pieces) if piece.type in special
        }
        normalizer, trainer = proto.normalizer_spec, proto.trainer_spec
        unchanged = not normalizer.precompiled_charsmap and not normalizer.remove_extra_whitespaces
        is_plain = unchanged and normalizer.escape_whitespaces and not trainer.treat_whitespace_as_suffix
        self.is_bpe = trainer.model_type == trainer.BPE and trainer.byte_fallback and is_plain
        self.unknown_id = None if trainer.byte_fallback else self._processor.unk_id()
        self._dummy_prefix = normalizer.add_dummy_prefix
        self._bigrams = {
            piece.piece[i : i + 2].replace("\u2581", " ")
            for piece in proto.pieces
            if piece.type != kinds.BYTE
            for i in range(len(piece.piece) - 1)
        }
        # The space before a part is left to the prefix, which no symbol of the user's may have a share in.
        self._is_cut = self.is_bpe and not (
            self._dummy_prefix
            and any(
                piece.type == kinds.USER_DEFINED and set(piece.piece) & {" ", "\u2581"}
                for piece in proto.pieces
            )
        )
        normal = [
            piece.score for piece in proto.pieces if piece.type == kinds.NORMAL and len(piece.piece) > 1
        ]
        if not self.is_bpe:
            self.why_slow = "only BPE with byte fallback and identity normalisation has a fast path"
        elif any(piece.type == kinds.UNUSED for piece in proto.pieces):
            self.why_slow = "it has unused pieces, which SentencePiece takes apart again"
        elif len(set(normal)) < len(normal):
            self.why_slow = (
                "some of its pieces have the same score, and gigatoken does not merge the leftmost first"
            )
        elif fast:
            # "<0x" begins the names of the byte tokens.
            self._use_fast(lambda: _gigatoken(path), more_literals=["<0x"])

    def reference(self, texts: Sequence[str]) -> list[list[int]]:
        return self._processor.encode(list(texts), add_bos=False, add_eos=False, num_threads=1)

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode(list(ids))

    def cut(self, text: str, limit: int) -> Iterator[str]:
        """Cut between two characters that are neighbours in no piece: no merge can cross there."""
        start = 0
        while self._is_cut and len(text) - start > limit:
            here = self._next_cut(text, start + limit)
            if here is None:
                break
            yield text[start:here]
            # With a dummy prefix every part is given the space that it began with.
            start = here + self._dummy_prefix
        yield text[start:]

    def _next_cut(self, text: str, position: int) -> int | None:
        for here in range(position, len(text)):
            before, after = text[here - 1].replace("\u2581", " "), text[here].replace("\u2581", " ")
            if before + after in self._bigrams:
                continue
            # The last part must not be empty: SentencePiece gives an empty text no prefix.
            if not self._dummy_prefix or (text[here] == " " and before != " " and here + 1 < len(text)):
                return here
        return None


def _gigatoken(path: Path) -> Any:
    from gigatoken import Tokenizer

    return Tokenizer.from_sentencepiece(path).backend
