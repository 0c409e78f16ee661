"""tiktoken's ranks."""

import base64
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_tools.encoders import patterns
from data_tools.encoders.base import Encoder, cut_before_spaces
from data_tools.encoders.known import all_known
from data_tools.files import sha256

MEGATRON_SPECIALS = 1000
MEGATRON_VOCABULARY = 1 << 17
GIGATOKEN_PATTERNS = {"r50k_base": "gpt2", "cl100k_base": "gpt4", "o200k_base": "o200k", "llama3": "olmo3"}
END = "<|endoftext|>"
ENDS = {("r50k_base", 50281): 50256, ("cl100k_base", 100256): 100257, ("o200k_base", 199998): 199999}
"""Pattern, first id after the ranks: <|endoftext|> of the encodings that do not have it there (the first of
these is p50k_base)."""
LLAMA3_SPECIALS = {
    0: "begin_of_text",
    1: "end_of_text",
    6: "start_header_id",
    7: "end_header_id",
    9: "eot_id",
}
LLAMA3_SPECIAL_COUNT = 256


class TiktokenEncoder(Encoder):
    """A file of ranks, or the .json that Megatron's ``TikTokenTokenizer`` reads.

    Megatron's puts its special tokens in front: ``<s>`` is 1, ``</s>`` is 2, ranks begin at 1000.
    """

    def __init__(self, path: Path, *, fast: bool, pattern: str | None, is_megatrons: bool) -> None:
        import tiktoken

        known = patterns.MEGATRON if is_megatrons else patterns.TIKTOKEN
        if pattern is None and path.stem in patterns.TIKTOKEN:
            pattern = path.stem
        if pattern not in known:
            what = "" if is_megatrons else " holds tiktoken's ranks and"
            raise ValueError(
                f"--tiktoken-pattern: {path}{what} needs one of {', '.join(known)}, got {pattern}"
                + ("" if is_megatrons else " (a tokenizer.model of Llama 3 is llama3)")
            )
        self.sha256 = sha256(path)
        ranks, self.specials = _megatron_ranks(path) if is_megatrons else _tiktoken_ranks(path, pattern)
        if lacking := [byte for byte in range(256) if bytes([byte]) not in ranks]:
            raise ValueError(
                f"--tokenizer-model {path}: has no token for the byte {lacking[0]:#04x}, so that it cannot "
                "encode every text: copy the file again, or make it with all 256 bytes"
            )
        self._encoding = tiktoken.Encoding(
            name=path.stem, pat_str=known[pattern], mergeable_ranks=ranks, special_tokens=self.specials
        )
        self.vocab_size = self._encoding.max_token_value + 1
        if is_megatrons:
            self.why_slow = "gigatoken does not know Megatron's split patterns"
        elif fast:
            specials, name = self.specials, GIGATOKEN_PATTERNS[pattern]
            self._use_fast(lambda: _gigatoken(path, name, specials))

    def reference(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._encoding.encode_ordinary(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        control = set(self.specials.values())
        return self._encoding.decode([token for token in ids if token not in control])

    def cut(self, text: str, limit: int) -> Iterator[str]:
        return cut_before_spaces(text, limit)

    def _fast_input(self, text: str) -> str | None:
        plain = super()._fast_input(text)
        return plain if plain is not None and all_known(plain) else None


def _tiktoken_ranks(path: Path, pattern: str) -> tuple[dict[bytes, int], dict[str, int]]:
    ranks: dict[bytes, int] = {}
    seen: set[int] = set()
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            decoded, index = base64.b64decode(token, validate=True), int(rank)
        except ValueError as error:
            raise ValueError(
                f"--tokenizer-model {path}, line {number}: expected TOKEN_IN_BASE64 RANK"
            ) from error
        if decoded in ranks or index in seen:
            raise ValueError(f"--tokenizer-model {path}, line {number}: this token or rank was there before")
        ranks[decoded] = index
        seen.add(index)
    return ranks, _specials(pattern, max(seen, default=-1) + 1)


def _specials(pattern: str, first: int) -> dict[str, int]:
    """Control tokens by what the ranks are, as they are not in the file.

    Args:
        first: id after the last rank.
    """
    if pattern != "llama3":
        return {END: ENDS.get((pattern, first), first)}
    reserved = (f"reserved_special_token_{number}" for number in range(LLAMA3_SPECIAL_COUNT))
    names = (LLAMA3_SPECIALS.get(index) or next(reserved) for index in range(LLAMA3_SPECIAL_COUNT))
    return {f"<|{name}|>": first + index for index, name in enumerate(names)}


def _megatron_ranks(path: Path) -> tuple[dict[bytes, int], dict[str, int]]:
    try:
        vocabulary = json.loads(path.read_text(encoding="utf-8"))
        tokens = [base64.b64decode(entry["token_bytes"]) for entry in vocabulary]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--tokenizer-model {path}: not what TikTokenTokenizer reads ({error})") from error
    tokens = tokens[: MEGATRON_VOCABULARY - MEGATRON_SPECIALS]
    ranks = {token: rank + MEGATRON_SPECIALS for rank, token in enumerate(tokens)}
    return ranks, {"<unk>": 0, "<s>": 1, "</s>": 2}


def _gigatoken(path: Path, pattern: str, specials: dict[str, int]) -> Any:
    from gigatoken import Tokenizer

    return Tokenizer.from_tiktoken(path, pattern, specials).backend
