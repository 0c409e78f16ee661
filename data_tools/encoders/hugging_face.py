"""Hugging Face's tokenizer.json."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.encoders.base import Encoder, cut_before_spaces
from data_tools.encoders.known import all_known, is_nfc
from data_tools.encoders.tokenizer_json import (
    Document,
    can_be_cut,
    is_nfc_only,
    knows_everything,
    why_not_fast,
)
from data_tools.files import sha256

RARE = "\U00013000\U00010380\u16a0"
"""Letters of scripts that hardly any vocabulary has."""


class HuggingFaceEncoder(Encoder):
    """A tokenizer.json."""

    def __init__(self, path: Path, *, fast: bool) -> None:
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
            document = json.loads(path.read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises nothing more precise
            raise ValueError(f"--tokenizer-model {path}: not a tokenizer.json ({error})") from error
        self.switched_off = self._switch_off(document)
        self._tokenizer.encode_special_tokens = True  # a text that spells one out stays text
        added = self._tokenizer.get_added_tokens_decoder()
        self.specials = {token.content: index for index, token in added.items()}
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.sha256 = sha256(path)
        self._is_cut = can_be_cut(document, added.values())
        self._refuse_if_it_fails_on_the_unknown(path)
        self._finder: tuple[Any, int] | None = None
        if not knows_everything(document):
            self.unknown_id = _unknown_id(self._tokenizer, document["model"])
            self._finder = _finder_of_lost_characters(self._tokenizer, document)
        if fast:
            self._take_fast_path()

    def _switch_off(self, document: Document) -> list[str]:
        """Have the same text give all of its ids, and the same each time."""
        tokenizer = self._tokenizer
        found: list[str] = []
        for name in ("dropout", "alpha"):
            if value := getattr(tokenizer.model, name, None):
                setattr(tokenizer.model, name, None)
                found.append(f"{name} {value:g}")
        found += [name for name in ("truncation", "padding") if document.get(name)]
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return found

    def _refuse_if_it_fails_on_the_unknown(self, path: Path) -> None:
        try:
            self.reference([RARE])
        except Exception as error:  # tokenizers raises nothing more precise
            raise ValueError(
                f"--tokenizer-model {path}: it fails on characters that it does not know ({error}): name one "
                "of its tokens as the unknown one, unk_token (Unigram: unk_id) in the file's model"
            ) from error

    def _take_fast_path(self) -> None:
        document = json.loads(self._tokenizer.to_str())
        self.why_slow = why_not_fast(document)
        if self.why_slow is not None:
            return
        self._is_byte_level = not document["model"]["byte_fallback"]
        self._is_nfc = is_nfc_only(document["normalizer"])
        if self._is_nfc:  # gigatoken's tables are newer than those of `tokenizers`, which normalizes for it
            document["normalizer"] = None
        # A token may be looked for in the normalized text. "<0x" begins the names of the byte tokens.
        normalizer = self._tokenizer.normalizer
        literals = [] if normalizer is None else [normalizer.normalize_str(text) for text in self.specials]
        literals += [] if self._is_byte_level else ["<0x"]
        if not all(literals):
            self.why_slow = "one of its added tokens is nothing once normalized"
            return
        self._use_fast(lambda: _gigatoken(document), more_literals=literals)

    def reference(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def cut(self, text: str, limit: int) -> Iterator[str]:
        return cut_before_spaces(text, limit) if self._is_cut else iter([text])

    def unknown(self, text: str, ids: np.ndarray) -> int:
        if self._finder is None:
            return super().unknown(text, ids)
        finder, lost = self._finder
        return finder.encode(text, add_special_tokens=False).ids.count(lost)

    def _fast_input(self, text: str) -> str | None:
        plain = super()._fast_input(text)
        if plain is None or not self._is_byte_level or plain.isascii():
            return plain
        if not all_known(plain):
            return None
        if self._is_nfc and not is_nfc(plain):
            return super()._fast_input(self._tokenizer.normalizer.normalize_str(plain))
        return plain


def _unknown_id(tokenizer: Any, model: Document) -> int | None:
    if model.get("unk_token") is not None:
        return tokenizer.token_to_id(model["unk_token"])
    return model.get("unk_id")


def _finder_of_lost_characters(tokenizer: Any, document: Document) -> tuple[Any, int] | None:
    """Of a tokenizer that passes over characters that it does not know: one that has an id for each of them.

    Its other ids are no good: pieces that are neighbours without the lost character are none with its id.

    Returns:
        it, and the id; None where nothing is passed over.
    """
    import tokenizers

    model = document["model"]
    if model.get("type") != "BPE" or model.get("unk_token") is not None:
        return None
    lost = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    name = next(name for i in range(lost + 1) if (name := f"<lost {i}>") not in model["vocab"])
    model = model | {"unk_token": name, "dropout": None, "vocab": model["vocab"] | {name: lost}}
    finder = tokenizers.Tokenizer.from_str(
        json.dumps(document | {"model": model, "truncation": None, "padding": None})
    )
    finder.encode_special_tokens = True
    return finder, lost


def _gigatoken(document: Document) -> Any:
    from gigatoken import Tokenizer

    return Tokenizer.from_json(json.dumps(document)).backend
