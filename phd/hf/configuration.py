"""Configuration of a PHD-Transformer for transformers: Llama's, and the variant."""

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig

from phd.rules.copies import Copies
from phd.rules.keys import Blocks, Full
from phd.rules.pattern import LayerPattern
from phd.rules.rule import AttentionRule
from phd.rules.variant import Variant

VERSION = 2
_FIRST_VERSION = {"phd_copies": 1, "phd_window": 16, "phd_chunk": 32, "phd_patterns": None}
"""Fields of version 1 and their defaults: K, W, C (None: no chunks), and for each layer None (full) or
[block, sink, local, stride]."""

code: ModuleType | None
"""``phd.hf.code``. An exported model's copy of this file comes without: there transformers does it."""
try:
    code = importlib.import_module(".code", __package__)
except ImportError:
    code = None


@strict
class PHDLlamaConfig(LlamaConfig):
    """LlamaConfig plus what makes a model a PHD-Transformer (arXiv 2504.14992) or a LongGen hybrid (arXiv
    2410.01485); the weights are Llama's, and those of a copy embedding.

    Args:
        phd_variant: name of the variant, as in ``phd.rules.variant``: "PHD-CSWA-2-16-32". Instead of it the
            fields of version 1 are taken, from older folders or by hand: phd_copies, phd_window, phd_chunk,
            phd_patterns.
        phd_config_version: of these fields' meaning.

    Raises:
        ValueError: one of them is out of range, or written by a later version than this one.
    """

    model_type = "phd_llama"

    phd_variant: str = "vanilla"
    phd_config_version: int = VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        first = {name: kwargs.pop(name) for name in _FIRST_VERSION if name in kwargs}
        if first and self.phd_variant != "vanilla":
            raise ValueError(
                f"phd_variant {self.phd_variant} says what {', '.join(first)} says: leave one out"
            )
        if first:
            self.phd_variant = str(_of_first_version(**_FIRST_VERSION | first))
        if self.phd_config_version == 1:
            self.phd_config_version = VERSION
        super().__post_init__(**kwargs)

    @property
    def variant(self) -> Variant:
        return Variant.parse(self.phd_variant)

    @property
    def copies(self) -> Copies:
        return self.variant.copies

    @property
    def rules(self) -> tuple[AttentionRule, ...]:
        """The rule of each layer; of the first ones, where ``num_hidden_layers`` was lowered since."""
        variant = self.variant
        depth = variant.pattern.depth or self.num_hidden_layers
        return variant.layers(depth)[: self.num_hidden_layers]

    def validate_architecture(self) -> None:
        super().validate_architecture()
        if self.phd_config_version != VERSION:
            raise ValueError(
                f"config.json has phd_config_version {self.phd_config_version}, this modeling code reads up "
                f"to {VERSION}: take the modeling files that came with it (trust_remote_code=True), or "
                "another version of phd"
            )
        try:
            variant = self.variant
            rules = variant.layers(self.num_hidden_layers, self.num_key_value_heads)
        except ValueError as error:
            raise ValueError(f"phd_variant: {error}") from error
        if any(rule.keys.trained_only for rule in rules):
            raise ValueError(f"phd_variant: {variant} has layers of training alone, which are full elsewhere")
        if self.attention_dropout and variant != Variant():
            raise ValueError(
                f"attention_dropout must be 0 with phd_variant {variant}, got {self.attention_dropout}"
            )

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Write config.json and the modeling files that it names; so does ``save_pretrained`` of a model."""
        if code is not None:
            self.auto_map = code.AUTO_MAP
        super().save_pretrained(save_directory, *args, **kwargs)
        if code is not None:
            code.write_code(Path(save_directory))


def _of_first_version(
    phd_copies: int, phd_window: int, phd_chunk: int | None, phd_patterns: "list[list[Any] | None] | None"
) -> Variant:
    """
    Raises:
        ValueError: a field is out of range; names it.
    """
    for name, value in (("phd_copies", phd_copies), ("phd_window", phd_window)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if phd_chunk is not None and phd_chunk < phd_window:
        raise ValueError(f"phd_chunk must be None or at least phd_window ({phd_window}), got {phd_chunk}")
    copies = Copies(phd_copies, phd_window, phd_chunk)
    if phd_patterns is None:
        return Variant(copies)
    for index, numbers in enumerate(phd_patterns):
        if numbers is not None and (len(numbers) != 4 or None in numbers[:3]):
            raise ValueError(
                f"phd_patterns of layer {index} must be null or [block, sink, local, stride or null], "
                f"got {numbers}"
            )
    try:
        layers = tuple(Full() if numbers is None else Blocks(*numbers) for numbers in phd_patterns)
    except ValueError as error:
        raise ValueError(f"phd_patterns: {error}") from error
    return Variant(copies, LayerPattern.of(layers))
