"""Configuration of a PHD-Transformer for transformers: Llama's, K, W, C, and the pattern of each layer."""

import importlib
import os
from dataclasses import astuple
from pathlib import Path
from types import ModuleType
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig

from phd.attention.pattern import LayerPatterns, Pattern

VERSION = 1

code: ModuleType | None
"""``phd.hf.code``. An exported model's copy of this file comes without: there transformers does it."""
try:
    code = importlib.import_module(".code", __package__)
except ImportError:
    code = None


@strict
class PHDLlamaConfig(LlamaConfig):
    """LlamaConfig plus what makes a model a PHD-Transformer (arXiv 2504.14992) or a LongGen hybrid (arXiv
    2410.01485); the weights are Llama's.

    Args:
        phd_copies: K, how many times each token passes through the model. 1 is Llama.
        phd_window: W, a hidden copy sees the hidden copies of the W most recent positions, its own
            included. 1 is plain PHD.
        phd_chunk: C, only inside chunks of C positions (PHD-CSWA); None for no chunks (PHD-SWA).
        phd_patterns: for each layer None (full attention) or [block, sink, local, stride], as in
            ``phd.attention.pattern.Pattern``; None if all are full.
        phd_config_version: of these fields' meaning.

    Raises:
        ValueError: one of them is out of range, or written by a later version than this one.
    """

    model_type = "phd_llama"

    phd_copies: int = 1
    phd_window: int = 16
    phd_chunk: int | None = 32
    phd_patterns: list[list[int | None] | None] | None = None
    phd_config_version: int = VERSION

    @property
    def patterns(self) -> LayerPatterns:
        """The pattern of each layer; None where it is full attention."""
        layers = (self.phd_patterns or [None] * self.num_hidden_layers)[: self.num_hidden_layers]
        # the validation below knows them to be numbers
        return tuple(None if numbers is None else Pattern(*numbers) for numbers in layers)  # type: ignore[arg-type]

    def validate_architecture(self) -> None:
        super().validate_architecture()
        if self.phd_config_version != VERSION:
            raise ValueError(
                f"config.json has phd_config_version {self.phd_config_version}, this modeling code reads "
                f"{VERSION}: take the modeling files that came with it (trust_remote_code=True), or another "
                "version of phd"
            )
        if self.phd_copies < 1:
            raise ValueError(f"phd_copies must be at least 1, got {self.phd_copies}")
        if self.phd_window < 1:
            raise ValueError(f"phd_window must be at least 1, got {self.phd_window}")
        if self.phd_chunk is not None and self.phd_chunk < self.phd_window:
            raise ValueError(
                f"phd_chunk must be None or at least phd_window ({self.phd_window}), got {self.phd_chunk}"
            )
        if self.phd_patterns is not None:
            self._check_patterns(self.phd_patterns)
        if self.attention_dropout and (self.phd_copies > 1 or any(self.patterns)):
            raise ValueError(
                f"attention_dropout must be 0 with phd_copies above 1 or sparse layers, got "
                f"{self.attention_dropout}"
            )

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Write config.json and the modeling files that it names; so does ``save_pretrained`` of a model."""
        if code is not None:
            self.auto_map = code.AUTO_MAP
        super().save_pretrained(save_directory, *args, **kwargs)
        if code is not None:
            code.write_code(Path(save_directory))

    def _check_patterns(self, layers: list[list[int | None] | None]) -> None:
        if len(layers) != self.num_hidden_layers:
            raise ValueError(
                f"phd_patterns has {len(layers)} layers, num_hidden_layers is {self.num_hidden_layers}"
            )
        for index, numbers in enumerate(layers):
            if numbers is not None and (len(numbers) != 4 or None in numbers[:3]):
                raise ValueError(
                    f"phd_patterns of layer {index} must be null or [block, sink, local, stride or null], "
                    f"got {numbers}"
                )
        try:
            _ = self.patterns
        except ValueError as error:
            raise ValueError(f"phd_patterns: {error}") from error


def stored_patterns(patterns: LayerPatterns) -> list[list[int | None] | None]:
    """``PHDLlamaConfig.phd_patterns`` for the pattern of each layer."""
    return [None if pattern is None else [*astuple(pattern)] for pattern in patterns]
