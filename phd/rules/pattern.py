"""The pattern of a model's layers: one rule of keys for each, as text.

    full                        every layer
    sink.128.1.16               every layer
    10sink-12full-10sink        by layer, from the first on
    heads.2full.6sink           every layer, by key/value heads
    longgen-sink.128.1.16       LongGen's hybrid: top and bottom thirds of the layers sparse

The text is made for shells, folders, SLURM and W&B; ``10*sink,12*full,10*sink`` is read too.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from phd.rules.keys import SPELLINGS, TEXT, Full, Keys, parse_keys

_PRESETS = {"longgen-sink": "sink", "longgen-block": "block-sparse"}
"""LongGen's hybrids (arXiv 2410.01485, section 3): the kind of the layers around the full ones."""

_OLD = {"block": 64, "sink_blocks": 1, "local_blocks": 32, "stride": 64, "stride_local_blocks": 1}

_LAYERS = re.compile(rf"(\d*)({TEXT})(?:-|$)")


@dataclass(frozen=True)
class LayerPattern:
    """A pattern that is not bound to a depth yet. Make it with ``parse`` or ``of``."""

    text: str = "full"
    """In the spelling that ``parse`` gives it, which is the same for equal patterns."""

    def __str__(self) -> str:
        return self.text

    @classmethod
    def of(cls, layers: "tuple[Keys, ...]") -> "LayerPattern":
        """The pattern that says these layers one by one."""
        return cls(_spelled([(len([*same]), keys) for keys, same in groupby(layers)]))

    @classmethod
    def parse(cls, text: str) -> "LayerPattern":
        """From what a flag, a name or a file holds.

        Raises:
            ValueError: it is no pattern.
        """
        preset, numbers = _preset(text)
        if preset is not None:
            keys = str(parse_keys(_PRESETS[preset] + numbers))
            return cls(preset + keys.removeprefix(_PRESETS[preset]))
        return cls(_spelled(_groups(text)))

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> "LayerPattern":
        """From the arguments of a run. Older ones have a kind's numbers as arguments of their own.

        Raises:
            ValueError: it is no pattern.
        """

        def numbers(*names: str) -> str:
            return "".join(f".{arguments.get(f'attention_pattern_{name}', _OLD[name])}" for name in names)

        sink = numbers("block", "sink_blocks", "local_blocks")
        sparse = numbers("block", "stride", "stride_local_blocks")
        text = arguments.get("attention_pattern", "full")
        text = re.sub(r"((?:longgen-)?sink)(?!\.)", rf"\g<1>{sink}", text)
        return cls.parse(re.sub(r"(block-sparse|longgen-block)(?!\.)", rf"\g<1>{sparse}", text))

    def layers(self, num_layers: int, heads: int | None = None) -> tuple[Keys, ...]:
        """The rule of each of ``num_layers`` layers.

        Args:
            heads: key/value heads of a layer, where they are known.

        Raises:
            ValueError: the pattern is one of another depth, or of other heads.
        """
        layers = self._layers(num_layers)
        for number, keys in enumerate(layers, start=1):
            if heads is not None and keys.heads not in (None, heads):
                raise ValueError(
                    f"layer {number} of the attention pattern, {keys}, is for {keys.heads} key/value heads, "
                    f"and the model has {heads}"
                )
        return layers

    def _layers(self, num_layers: int) -> tuple[Keys, ...]:
        preset, numbers = _preset(self.text)
        if preset is not None:
            if num_layers < 3:
                raise ValueError(
                    f"{preset} has sparse layers around full ones: it needs 3 layers, the model has "
                    f"{num_layers}"
                )
            return middle_third(parse_keys(_PRESETS[preset] + numbers), num_layers)
        groups = _groups(self.text)
        if self.depth is None:
            return (groups[0][1],) * num_layers
        layers = tuple(keys for count, keys in groups for _ in range(1 if count is None else count))
        if len(layers) != num_layers:
            raise ValueError(
                f"the attention pattern {self.text} has {len(layers)} layers, the model {num_layers}"
            )
        return layers

    @property
    def depth(self) -> int | None:
        """How many layers a list has; None where the pattern fits any number."""
        if _preset(self.text)[0] is not None:
            return None
        counts = [count for count, _ in _groups(self.text)]
        return None if counts == [None] else sum(1 if count is None else count for count in counts)

    @property
    def sparse(self) -> bool:
        """Whether some layer does not keep all keys."""
        return _preset(self.text)[0] is not None or any(keys != Full() for _, keys in _groups(self.text))


def middle_third(keys: Keys, num_layers: int) -> tuple[Keys, ...]:
    """LongGen's hybrid: full layers between two thirds of others, which are rounded down."""
    outer = num_layers // 3
    return (keys,) * outer + (Full(),) * (num_layers - 2 * outer) + (keys,) * outer


def _preset(text: str) -> tuple[str | None, str]:
    """The preset of a text and its numbers, as ``.64.1.32``."""
    preset, dot, numbers = text.partition(".")
    return (preset, dot + numbers) if preset in _PRESETS else (None, "")


def _groups(text: str) -> list[tuple[int | None, Keys]]:
    """(how many layers or None for one without a number, their rule), from the first layer on."""
    plain = text.replace(" ", "").replace("*", "").replace(",", "-")
    groups, end = [], 0
    for match in _LAYERS.finditer(plain):
        if match.start() != end:
            break
        groups.append((int(match[1]) if match[1] else None, parse_keys(match[2])))
        end = match.end()
    if not groups or end != len(plain) or plain.endswith("-"):
        raise ValueError(
            f"{text!r} is no attention pattern: write {' or '.join(_PRESETS)}, one of {SPELLINGS}, or a list "
            "of layers like 10sink-12full-10sink"
        )
    return groups


def _spelled(groups: "list[tuple[int | None, Keys]]") -> str:
    if len(groups) == 1 and groups[0][0] is None:
        return str(groups[0][1])
    same = groupby(groups, key=lambda group: group[1])
    return "-".join(
        f"{sum(1 if count is None else count for count, _ in group)}{keys}" for keys, group in same
    )
