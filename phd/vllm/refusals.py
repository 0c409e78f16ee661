"""What vLLM is asked for with a PHD model, refused by name where it would go wrong, and the size of a block
of its cache. Values alone: it needs no vLLM.
"""

import itertools
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


def ring_slots(variant: Variant, block: int) -> int:
    """Slots of a request's ring: the least divisor of ``block`` from W - 1 on: vLLM's prefix hits end at
    common multiples of the sizes of all its caches. 0 for W = 1.
    """
    needed = variant.copies.window - 1
    return next(x for x in range(needed, block + 1) if not block % x) if needed else 0


def _ring_fits(variant: Variant, block: int) -> bool:
    """Whether a block is room for a request's ring, which holds K - 1 hidden copies of each position."""
    needed = variant.copies.window - 1
    return block >= needed and ring_slots(variant, block) * variant.copies.hidden <= block


def block_size(variant: Variant, asked: Asked, unit: int, default: int) -> int:
    """Positions of a block of vLLM's cache: the user's, or the least from ``default`` on that fits.

    A prefix hit ends where a block ends, which must be where a chunk ends. A block is also a request's ring.

    Args:
        unit: the block size must be a multiple of it, for the kernels.

    Raises:
        ValueError: the user's does not fit, or hits are asked for at other places.
    """
    chunk = variant.copies.chunk or 1
    step = math.lcm(chunk, unit)
    fitting = (x for x in itertools.count(step, step) if _ring_fits(variant, x))
    if asked.block_size is None:
        given = next(x for x in fitting if x >= default)
    else:
        given, least = asked.block_size, next(fitting)
        flag = f"--block-size {given}"
        if asked.enable_prefix_caching and given % chunk:
            raise ValueError(
                f"{flag} is no multiple of the chunk of {variant}, {chunk}: take {least}, leave it out, or "
                "pass --no-enable-prefix-caching"
            )
        if given % unit:
            raise ValueError(
                f"{flag} is no multiple of {unit}, as the kernels for the hidden copies of {variant} need: "
                f"take {least}, or leave it out"
            )
        if not _ring_fits(variant, given):
            raise ValueError(
                f"{flag} is no room for the hidden keys of {variant} that a request keeps, K - 1 for each of "
                f"W - 1 positions: take {least}, or leave it out"
            )
    match = asked.prefix_match_unit
    if asked.enable_prefix_caching and match is not None and match % chunk:
        raise ValueError(
            f"--prefix-match-unit {match} is no multiple of the chunk of {variant}, {chunk}: leave it out"
        )
    return given
