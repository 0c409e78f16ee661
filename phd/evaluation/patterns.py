"""A layer pattern at inference only: the baselines that LongGen (arXiv 2410.01485) is compared with."""

import argparse
from argparse import Namespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phd.attention.pattern import LayerPatterns

# PHDConfig's defaults, which would import torch; tests/evaluation compares the two
NUMBERS = {
    "block": (64, "positions in a block of a sparse layer"),
    "sink": (1, "first blocks that a sink layer keeps; 0 is a sliding window"),
    "local": (32, "most recent blocks that a sink layer keeps, the query's own included"),
    "stride": (64, "a block-sparse layer keeps every so many blocks one"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the pattern."""
    parser.add_argument(
        "--attention-pattern",
        metavar="PATTERN",
        help="evaluate the same weights with other layers than they were trained with: full, sink, "
        "longgen-sink, block-sparse, longgen-block, or a list such as 2*sink,2*full",
    )
    for name, (default, help) in NUMBERS.items():
        parser.add_argument(f"--pattern-{name}", type=int, metavar="N", help=f"{help} (default {default})")


def asked_patterns(args: Namespace, num_layers: int) -> "LayerPatterns":
    """The pattern of each layer.

    Raises:
        ValueError: it is not a pattern, or not one of so many layers.
    """
    from phd.attention.pattern import parse_patterns, pattern_kinds
    from phd.config import PHDConfig

    given = {name: getattr(args, f"pattern_{name}") for name in NUMBERS}
    block, sink, local, stride = (
        default if given[name] is None else given[name] for name, (default, _) in NUMBERS.items()
    )
    try:
        kinds = pattern_kinds(block, sink, local, stride, PHDConfig.attention_pattern_stride_local_blocks)
        return parse_patterns(args.attention_pattern, num_layers, kinds)
    except ValueError as error:
        raise ValueError(f"--attention-pattern: {error}") from error


def with_patterns(model: Any, patterns: "LayerPatterns") -> Any:
    """The model's weights, not copied, in a model whose layers have ``patterns``."""
    import torch

    from phd.hf import PHDLlamaConfig, PHDLlamaForCausalLM
    from phd.hf.configuration import stored_patterns

    settings = model.config.to_dict()
    del settings["model_type"]
    settings["phd_patterns"] = stored_patterns(patterns)
    config = PHDLlamaConfig(**settings)
    with torch.device("meta"):
        changed = PHDLlamaForCausalLM(config)
    changed.load_state_dict(model.state_dict(), assign=True)
    changed.tie_weights()
    changed.model.rotary_emb = model.model.rotary_emb  # its buffers are computed, not stored
    return changed.eval()
