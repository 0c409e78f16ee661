"""Hugging Face's tokenizer.json."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_tools.encoders.base import Encoder, cut_before_spaces
from data_tools.files import sha256


class HuggingFaceEncoder(Encoder):
    """A tokenizer.json."""

    def __init__(self, path: Path, *, fast: bool) -> None:
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing more precise
            raise ValueError(f"--tokenizer-model {path}: not a tokenizer.json ({error})") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # a text that spells one out stays text
        added = self._tokenizer.get_added_tokens_decoder()
        self.specials = {token.content: index for index, token in added.items()}
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.sha256 = sha256(path)
        self._splits = _splits_before_spaces(json.loads(path.read_text(encoding="utf-8")))
        if fast:
            self._use_fast(lambda: _gigatoken(path))

    def reference(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def cut(self, text: str, limit: int) -> Iterator[str]:
        return cut_before_spaces(text, limit) if self._splits else iter([text])


def _splits_before_spaces(tokenizer: dict[str, Any]) -> bool:
    """Whether it is a byte-level BPE like GPT-2's, which can be cut between a letter and a space."""
    pre_tokenizer = tokenizer.get("pre_tokenizer") or {}
    return (
        (tokenizer.get("model") or {}).get("type") == "BPE"
        and (tokenizer.get("normalizer") or {"type": "NFC"}).get("type") == "NFC"
        and pre_tokenizer.get("type") == "ByteLevel"
        and pre_tokenizer.get("use_regex", True)
        and not pre_tokenizer.get("add_prefix_space", True)
    )


def _gigatoken(path: Path) -> Any:
    from gigatoken import Tokenizer

    return Tokenizer(str(path)).backend
