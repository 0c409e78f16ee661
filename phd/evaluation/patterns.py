"""A layer pattern at inference only: the baselines that LongGen (arXiv 2410.01485) is compared with."""

import argparse
from dataclasses import replace
from typing import Any

from phd.old_flags import add_old_pattern_flags
from phd.rules.keys import SPELLINGS, Keys
from phd.rules.pattern import LayerPattern
from phd.rules.variant import Variant

_OLD = {
    **{"--pattern-block": "attention_pattern_block", "--pattern-sink": "attention_pattern_sink_blocks"},
    **{"--pattern-local": "attention_pattern_local_blocks", "--pattern-stride": "attention_pattern_stride"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the pattern."""
    parser.add_argument(
        "--attention-pattern",
        metavar="PATTERN",
        help="evaluate the same weights with other layers than they were trained with: longgen-sink, "
        f"longgen-block, {SPELLINGS}, or a list such as 2sink-2full",
    )
    add_old_pattern_flags(parser, _OLD)


def asked_layers(text: str, num_layers: int) -> tuple[Keys, ...]:
    """The rule of keys of each layer.

    Raises:
        ValueError: it is not a pattern, or not one of so many layers.
    """
    try:
        return LayerPattern.parse(text).layers(num_layers)
    except ValueError as error:
        raise ValueError(f"--attention-pattern: {error}") from error


def with_layers(model: Any, layers: tuple[Keys, ...]) -> Any:
    """The model's weights, not copied, in a model whose layers keep the keys ``layers``."""
    import torch

    from phd.hf import PHDLlamaConfig, PHDLlamaForCausalLM

    settings = model.config.to_dict()
    del settings["model_type"]
    variant = Variant.parse(settings.get("phd_variant", "vanilla"))
    settings["phd_variant"] = str(replace(variant, pattern=LayerPattern.of(layers)))
    config = PHDLlamaConfig(**settings)
    with torch.device("meta"):
        changed = PHDLlamaForCausalLM(config)
    changed.load_state_dict(model.state_dict(), assign=True)
    changed.tie_weights()
    changed.model.rotary_emb = model.model.rotary_emb  # its buffers are computed, not stored
    return changed.eval()
