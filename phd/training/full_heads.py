"""DuoAttention's retrieval heads in a training: start-up writes --full-heads into --attention-pattern."""

from argparse import Namespace
from dataclasses import dataclass

from phd.megatron.transformer_config import key_value_heads
from phd.rules.full_heads import asked_pattern


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
    if args.full_heads is None and args.full_heads_share is None:
        return
    asked = args.attention_pattern, args.full_heads, args.full_heads_share
    args.attention_pattern = str(asked_pattern(*asked, args.num_layers, key_value_heads(args)))
