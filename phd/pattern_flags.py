"""Layers at inference that a model was not trained with: the baselines that LongGen (arXiv 2410.01485) is
compared with, and DuoAttention's heads (arXiv 2410.10819).
"""

import argparse
from argparse import Namespace
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from phd.rules.full_heads import asked_pattern
from phd.rules.keys import SPELLINGS, Keys
from phd.rules.pattern import LayerPattern
from phd.rules.variant import Variant

if TYPE_CHECKING:
    from transformers import LlamaConfig

    from phd.hf import PHDLlamaConfig


def add_pattern_flags(parser: argparse.ArgumentParser) -> None:
    """--attention-pattern, --full-heads and --full-heads-share."""
    parser.add_argument(
        "--attention-pattern",
        metavar="PATTERN",
        help="run the same weights with other layers than they were trained with: longgen-sink, "
        f"longgen-block, {SPELLINGS}, or a list such as 2sink-2full",
    )
    parser.add_argument(
        "--full-heads",
        metavar="FILE",
        help="JSON file with a gate for each layer and key/value head: those with the largest keep all keys, "
        "the others what the pattern says of their layer",
    )
    parser.add_argument(
        "--full-heads-share",
        type=float,
        metavar="S",
        help="with --full-heads: which share of the model's key/value heads keeps all keys (default 0.5)",
    )


def asked_layers(args: Namespace, config: "LlamaConfig") -> tuple[Keys, ...] | None:
    """The rule of keys of each layer that the flags ask for; None where the model's own are to run.

    Args:
        config: of the model.

    Raises:
        ValueError: they do not fit the model, or each other; names the flag.
    """
    text = args.attention_pattern
    if text is None and args.full_heads is None and args.full_heads_share is None:
        return None
    if text is None:
        text = str(_variant(config).pattern)
    layers, heads = config.num_hidden_layers, config.num_key_value_heads
    assert heads is not None  # set by the config itself
    pattern = asked_pattern(text, args.full_heads, args.full_heads_share, layers, heads)
    return pattern.layers(layers, heads)


def config_with_layers(config: "LlamaConfig", layers: tuple[Keys, ...]) -> "PHDLlamaConfig":
    """The configuration of the same model with layers that keep the keys ``layers``."""
    from phd.hf import PHDLlamaConfig

    settings = config.to_dict()
    del settings["model_type"]
    settings["phd_variant"] = str(replace(_variant(config), pattern=LayerPattern.of(layers)))
    settings["architectures"] = ["PHDLlamaForCausalLM"]
    return PHDLlamaConfig(**settings)


def with_layers(model: Any, layers: tuple[Keys, ...]) -> Any:
    """The model's weights, not copied, in a model whose layers keep the keys ``layers``."""
    import torch

    from phd.hf import PHDLlamaForCausalLM

    with torch.device("meta"):
        changed = PHDLlamaForCausalLM(config_with_layers(model.config, layers))
    changed.load_state_dict(model.state_dict(), assign=True)
    changed.tie_weights()
    changed.model.rotary_emb = model.model.rotary_emb  # its buffers are computed, not stored
    return changed.eval()


def _variant(config: "LlamaConfig") -> Variant:
    return Variant.parse(getattr(config, "phd_variant", "vanilla"))
