"""tiktoken's ranks."""

import base64
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_tools.encoders.base import Encoder, cut_before_spaces
from data_tools.files import sha256

# Names that tiktoken's users know, and what the split expressions of these encodings are.
PATTERNS = {
    "r50k_base": r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s""",
    "cl100k_base": (
        r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|"""
        r"""\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
    ),
}
# Megatron's --tiktoken-pattern.
MEGATRON_PATTERNS = {
    "v1": (
        r"[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|"
        r"\s*[\r\n]|\s+(?!\S)|\s+"
    ),
    "v2": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
        r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
MEGATRON_SPECIALS = 1000
MEGATRON_VOCABULARY = 1 << 17
GIGATOKEN_PATTERNS = {"r50k_base": "gpt2", "cl100k_base": "gpt4"}
ENDS = {"r50k_base": 50256, "cl100k_base": 100257}


class TiktokenEncoder(Encoder):
    """A .tiktoken file of ranks, or the .json that Megatron's ``TikTokenTokenizer`` reads.

    Megatron's puts its special tokens in front: ``<s>`` is 1, ``</s>`` is 2, ranks begin at 1000.
    """

    def __init__(self, path: Path, *, fast: bool, pattern: str | None) -> None:
        import tiktoken

        names = tuple(MEGATRON_PATTERNS) if path.suffix == ".json" else tuple(PATTERNS)
        if pattern is None and path.stem in PATTERNS:
            pattern = path.stem
        if pattern not in names:
            raise ValueError(f"--tiktoken-pattern: {path} needs one of {', '.join(names)}, got {pattern}")
        self.sha256 = sha256(path)
        ranks, self.specials, expression = (
            _megatron_ranks(path, pattern) if path.suffix == ".json" else _tiktoken_ranks(path, pattern)
        )
        self._encoding = tiktoken.Encoding(
            name=path.stem, pat_str=expression, mergeable_ranks=ranks, special_tokens=self.specials
        )
        self.vocab_size = self._encoding.max_token_value + 1
        if path.suffix == ".json":
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


def _tiktoken_ranks(path: Path, pattern: str) -> tuple[dict[bytes, int], dict[str, int], str]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError as error:
            raise ValueError(
                f"--tokenizer-model {path}, line {number}: expected TOKEN_IN_BASE64 RANK"
            ) from error
    end = ENDS[pattern] if path.stem == pattern else max(ranks.values(), default=0) + 1
    return ranks, {"<|endoftext|>": end}, PATTERNS[pattern]


def _megatron_ranks(path: Path, pattern: str) -> tuple[dict[bytes, int], dict[str, int], str]:
    try:
        vocabulary = json.loads(path.read_text(encoding="utf-8"))
        tokens = [base64.b64decode(entry["token_bytes"]) for entry in vocabulary]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--tokenizer-model {path}: not what TikTokenTokenizer reads ({error})") from error
    tokens = tokens[: MEGATRON_VOCABULARY - MEGATRON_SPECIALS]
    ranks = {token: rank + MEGATRON_SPECIALS for rank, token in enumerate(tokens)}
    return ranks, {"<unk>": 0, "<s>": 1, "</s>": 2}, MEGATRON_PATTERNS[pattern]


def _gigatoken(path: Path, pattern: str, specials: dict[str, int]) -> Any:
    from gigatoken import Tokenizer

    return Tokenizer.from_tiktoken(path, pattern, specials).backend
