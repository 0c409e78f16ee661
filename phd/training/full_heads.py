"""DuoAttention's retrieval heads in a training: start-up writes --full-heads into --attention-pattern."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from phd.megatron.transformer_config import key_value_heads
from phd.rules.full_heads import read_gates, with_full_heads
from phd.rules.pattern import LayerPattern

SHARE = 0.5
"""The paper's for models with grouped queries."""


@dataclass(kw_only=True)
class FullHeadsConfig:
    """Heads that keep all keys in sparse layers (DuoAttention)."""

    full_heads: str | None = None
    """JSON file with a gate for each layer and key/value head: the heads with the largest keep all keys, the
    others what --attention-pattern says of their layer."""

    full_heads_share: float | None = None
    """With --full-heads: which share of the model's key/value heads keeps all keys; 0.5 by default."""


def take_full_heads(args: Namespace) -> None:
    """Put what --full-heads says into ``args.attention_pattern``, which from then on says it all.

    Args:
        args: Megatron's, the sizes known.

    Raises:
        ValueError: names the flags, and the file.
    """
    if args.full_heads is None:
        if args.full_heads_share is not None:
            raise ValueError("--full-heads-share is of --full-heads: pass it too, or leave this out")
        return
    share = SHARE if args.full_heads_share is None else args.full_heads_share
    try:
        gates = read_gates(Path(args.full_heads))
        pattern = LayerPattern.parse(args.attention_pattern)
        heads = key_value_heads(args)
        args.attention_pattern = str(with_full_heads(pattern, gates, share, args.num_layers, heads))
    except ValueError as error:
        raise ValueError(f"--full-heads {args.full_heads}: {error}") from error
