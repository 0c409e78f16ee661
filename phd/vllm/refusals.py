"""What vLLM is asked for with a PHD model, refused by name where it would go wrong, and the size of a block
of its cache. Values alone: it needs no vLLM.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from phd.rules.variant import Variant


@dataclass(frozen=True)
class Asked:
    """Of vLLM, by the names of its flags."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    context_parallel_size: int = 1
    """of decoding and of prefill, the larger"""
    enable_lora: bool = False
    speculative_config: bool = False
    kv_transfer_config: bool = False
    kv_cache_dtype: str = "auto"
    enable_dbo: bool = False
    pooling: bool = False
    enable_prefix_caching: bool = True
    prefix_match_unit: int | None = None
    block_size: int | None = None
    """None where the user gave none"""


def check_variant(variant: Variant) -> None:
    """Raise ValueError if vLLM cannot serve the attention of ``variant``."""
    copies = variant.copies
    remedy = "serve it with `phd serve --engine transformers`"
    if copies.cached:
        raise ValueError(f"phd_variant {variant}: vLLM does not know naive repetition's cache: {remedy}")
    if variant.pattern.sparse:
        raise ValueError(
            f"phd_variant {variant}: vLLM has no cache for layers that keep some keys only "
            f"({variant.pattern}): {remedy}"
        )
    if copies.hidden and copies.window > 1 and copies.chunk is None:
        raise ValueError(
            f"phd_variant {variant}: without chunks a prefix of the cache is no place to go on from in vLLM: "
            f"train on with chunks (PHD-CSWA-{copies.count}-{copies.window}-C), or {remedy}"
        )


def check_asked(variant: Variant, asked: Asked, heads: int, groups: int) -> None:
    """Raise ValueError, one line with flag and remedy, for what does not go with hidden copies.

    Args:
        heads, groups: query heads and key/value heads of the model.
    """
    check_variant(variant)
    if not variant.copies.hidden:
        return
    for flag, remedy in _wrong(asked):
        raise ValueError(f"{flag}: not with the hidden copies of {variant}: {remedy}")
    parallel = asked.tensor_parallel_size
    if heads % parallel or (groups % parallel and parallel % groups):
        raise ValueError(
            f"--tensor-parallel-size {parallel} does not divide {heads} query heads and {groups} key/value "
            f"heads: take {' or '.join(map(str, _parallel_sizes(heads, groups)))}"
        )


def _wrong(asked: Asked) -> Iterator[tuple[str, str]]:
    if asked.pipeline_parallel_size > 1:
        yield f"--pipeline-parallel-size {asked.pipeline_parallel_size}", "use --tensor-parallel-size"
    if asked.context_parallel_size > 1:
        yield (
            "--decode-context-parallel-size or --prefill-context-parallel-size above 1",
            "use --tensor-parallel-size",
        )
    if asked.enable_lora:
        yield "--enable-lora", "merge the adapter into the model (peft's merge_and_unload)"
    if asked.speculative_config:
        yield "--speculative-config", "leave it out"
    if asked.kv_transfer_config:
        yield "--kv-transfer-config or --kv-offloading-size", "leave it out: it would not carry their cache"
    if asked.kv_cache_dtype != "auto":
        yield f"--kv-cache-dtype {asked.kv_cache_dtype}", "leave it out, which takes the model's"
    if asked.enable_dbo:
        yield "--enable-dbo", "leave it out"
    if asked.pooling:
        yield "--runner pooling", "leave it out: most positions have no last copy"


def _parallel_sizes(heads: int, groups: int) -> list[int]:
    sizes = range(1, heads + 1)
    return [x for x in sizes if not heads % x and not (groups % x and x % groups)]


def ring_slots(variant: Variant) -> int:
    """Positions whose hidden keys a request's ring holds: W - 1."""
    return variant.copies.window - 1


def block_size(variant: Variant, asked: Asked, unit: int, default: int) -> int:
    """Positions of a block of vLLM's cache: the user's, or the least from ``default`` on that fits.

    A prefix hit ends where a block ends, which must be where a chunk ends. A block is also the room of a
    request's ring, which holds K - 1 hidden copies of W - 1 positions.

    Args:
        unit: the block size must be a multiple of it, for the kernels.

    Raises:
        ValueError: the user's does not fit, or hits are asked for at other places.
    """
    chunk, ring = variant.copies.chunk or 1, ring_slots(variant) * variant.copies.hidden
    step = math.lcm(chunk, unit)
    fitting = max(math.ceil(max(default, ring) / step), 1) * step
    least = max(math.ceil(ring / step), 1) * step
    given = asked.block_size
    if given is None:
        given = fitting
    if given < ring:
        raise ValueError(
            f"--block-size {given} is less than the {ring} hidden keys of {variant} that a request keeps, "
            f"(W - 1)(K - 1): take {least}, or leave it out"
        )
    if asked.enable_prefix_caching and given % chunk:
        raise ValueError(
            f"--block-size {given} is no multiple of the chunk of {variant}, {chunk}: take {least}, leave it "
            "out, or pass --no-enable-prefix-caching"
        )
    if given % unit:
        raise ValueError(
            f"--block-size {given} is no multiple of {unit}, as the kernels for the hidden copies of "
            f"{variant} need: take {least}, or leave it out"
        )
    match = asked.prefix_match_unit
    if asked.enable_prefix_caching and match is not None and match % chunk:
        raise ValueError(
            f"--prefix-match-unit {match} is no multiple of the chunk of {variant}, {chunk}: leave it out"
        )
    return given
