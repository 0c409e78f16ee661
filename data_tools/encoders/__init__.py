"""Text to token ids: the reference tokenizers, and a fast path that gives the same ids.

A reference is SentencePiece (.model), Hugging Face tokenizers (tokenizer.json) or tiktoken (ranks, or the
.json of Megatron's ``TikTokenTokenizer``). The fast path is gigatoken, where it is certain to do the same. It
would turn a control token that a text spells out (``<s>``) into the control token: such documents go to the
reference, which is told to keep them text.
"""

import re
from pathlib import Path

from data_tools.encoders.base import Encoder

__all__ = ["Encoder", "load_encoder"]

IN_FOLDERS = ("tokenizer.json", "tokenizer.model")
RANKS = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?(\n|$)")


def load_encoder(path: Path, *, fast: bool = True, pattern: str | None = None) -> Encoder:
    """The tokenizer in a file, by what the file holds: its name says nothing about the ids.

    Args:
        path: SentencePiece's model, Hugging Face's or Megatron's JSON, tiktoken's ranks, or a folder of
            Hugging Face with a tokenizer.json or tokenizer.model.
        fast: whether to take gigatoken where it can.
        pattern: of tiktoken, which its files do not hold.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is something else.
    """
    path = _file_of(Path(path))
    kind = _kind(path)
    if pattern is not None and kind not in ("ranks", "megatron"):
        raise ValueError(f"--tiktoken-pattern is for tiktoken's files, and {path} is none: leave it out")
    # Each brings a package of its own, so only the one in use is imported.
    if kind in ("ranks", "megatron"):
        from data_tools.encoders.tiktoken import TiktokenEncoder

        return TiktokenEncoder(path, fast=fast, pattern=pattern, is_megatrons=kind == "megatron")
    if kind == "hugging face":
        from data_tools.encoders.hugging_face import HuggingFaceEncoder

        return HuggingFaceEncoder(path, fast=fast)
    from data_tools.encoders.sentence_piece import SentencePieceEncoder

    return SentencePieceEncoder(path, fast=fast)


def _file_of(path: Path) -> Path:
    if path.is_dir():
        found = next((path / name for name in IN_FOLDERS if (path / name).is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"--tokenizer-model {path}: the folder has neither {' nor '.join(IN_FOLDERS)}: name the file"
            )
        return found
    if not path.is_file():
        raise FileNotFoundError(f"--tokenizer-model {path}: there is no such file")
    return path


def _kind(path: Path) -> str:
    with open(path, "rb") as file:
        head = file.read(4096)
    # A SentencePiece model begins with the tag of its first piece, which is a line feed.
    begin = head.lstrip() if path.suffix == ".json" else head.lstrip(b" \t\r")
    if begin.startswith(b"{"):
        return "hugging face"
    if begin.startswith(b"["):
        return "megatron"
    if path.suffix == ".tiktoken" or RANKS.match(head):
        return "ranks"
    return "hugging face" if path.suffix == ".json" else "sentence piece"
