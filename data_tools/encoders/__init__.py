"""Text to token ids: the reference tokenizers, and a fast path that gives the same ids.

A reference is SentencePiece (.model), Hugging Face tokenizers (tokenizer.json) or tiktoken (.tiktoken, or the
.json of Megatron's ``TikTokenTokenizer``). The fast path is gigatoken, where it reads the tokenizer. It would
turn a control token that a text spells out (``<s>``) into the control token: such documents go to the
reference, which is told to keep them text.
"""

from pathlib import Path

from data_tools.encoders.base import Encoder

__all__ = ["Encoder", "load_encoder"]


def load_encoder(path: Path, *, fast: bool = True, pattern: str | None = None) -> Encoder:
    """The tokenizer in a file, by what the file is.

    Args:
        path: .model (SentencePiece), .json (Hugging Face, or Megatron's tiktoken) or .tiktoken.
        fast: whether to take gigatoken where it can.
        pattern: of tiktoken, which its files do not hold.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"--tokenizer-model {path}: there is no such file")
    is_tiktoken = path.suffix == ".tiktoken" or (path.suffix == ".json" and _begins_with(path, b"["))
    if pattern is not None and not is_tiktoken:
        raise ValueError(f"--tiktoken-pattern is for tiktoken's files, and {path} is none: leave it out")
    # Each brings a package of its own, so only the one in use is imported.
    if is_tiktoken:
        from data_tools.encoders.tiktoken import TiktokenEncoder

        return TiktokenEncoder(path, fast=fast, pattern=pattern)
    if path.suffix == ".json":
        from data_tools.encoders.hugging_face import HuggingFaceEncoder

        return HuggingFaceEncoder(path, fast=fast)
    from data_tools.encoders.sentence_piece import SentencePieceEncoder

    return SentencePieceEncoder(path, fast=fast)


def _begins_with(path: Path, start: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(64).lstrip().startswith(start)
