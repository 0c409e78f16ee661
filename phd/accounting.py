"""What a PHD model costs, by formula: training FLOPs, model FLOPs utilisation, bytes of KV cache.

Conventions, the same for every variant and for the vanilla baseline:
  - a multiply-add is two FLOPs; only matrix products are counted; backward costs twice forward;
  - activation recomputation is not counted (model FLOPs, not hardware FLOPs);
  - attention counts the (query, key) pairs that may see each other, so causal attention counts half of the
    square (s (s + 1) / 2 pairs), whatever the kernel really multiplies;
  - "per token" is per original token: the K copies are work done for one token, never K tokens.

Symbols: K copies, W window, C chunk, s sequence length (positions). A pattern is what a sparse layer keeps of
the originals (``phd.attention.pattern``); None is full attention.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from phd.attention.pattern import Pattern

# Dense peaks (no structured sparsity) in FLOP/s of one device with bf16 or fp16 inputs and fp32 sums, from
# NVIDIA's data sheets. Matched against the device's name, the first hit wins, so longer names come first.
_BF16_PEAKS = (
    ("GB200", 2.5e15),
    ("B200", 2.25e15),
    ("GH200", 989.4e12),
    ("H200 NVL", 835.5e12),
    ("H200", 989.4e12),
    ("H100 PCIe", 756.5e12),
    ("H100 NVL", 835.5e12),
    ("H100", 989.4e12),
    ("A100", 312e12),
    ("L40S", 362e12),
)


def visible_pairs(
    seq_length: int,
    *,
    copies: int = 1,
    window: int = 1,
    chunk: int | None = None,
    naive: bool = False,
    pattern: "Pattern | None" = None,
    last_copy_only: bool = False,
) -> int:
    """Number of (query, key) pairs of one sequence and one head that the attention rule lets see each other.

    Equals the sum of ``phd.attention.rule.can_see`` (or ``can_see_naive``) over all K s queries, or those of
    the last copy, and K s keys.

    Raises:
        ValueError: ``seq_length``, ``copies``, ``window`` or ``chunk`` is below 1; or naive repetition is
            given a pattern.
    """
    _check_rule(seq_length, copies, window, chunk, naive and pattern is not None)
    if naive:
        earlier_tokens = copies * copies * seq_length * (seq_length - 1) // 2
        own_token = copies * seq_length * (copies + 1) // 2
        if last_copy_only:
            return earlier_tokens // copies + copies * seq_length
        return earlier_tokens + own_token
    queries = 1 if last_copy_only else copies
    hidden_queries = min(queries, copies - 1)
    originals = queries * _pairs_of_originals(seq_length, pattern)
    chunk = min(chunk or seq_length, seq_length)
    whole_chunks, rest = divmod(seq_length, chunk)
    # Pairs of positions at distance 1..W-1 within a chunk: each hidden query sees all K-1 hidden keys.
    earlier = whole_chunks * _band_pairs(chunk, window) + _band_pairs(rest, window)
    # At a hidden query's own position copy j sees the hidden copies 1..j.
    own = seq_length * (copies - 1 if last_copy_only else copies * (copies - 1) // 2)
    return originals + hidden_queries * (copies - 1) * earlier + own


def flops_per_token(
    *,
    num_layers: int,
    hidden_size: int,
    ffn_hidden_size: int,
    num_attention_heads: int,
    num_query_groups: int,
    kv_channels: int,
    vocab_size: int,
    seq_length: int,
    gated_linear_unit: bool,
    attention_output_gate: bool = False,
    copies: int = 1,
    window: int = 1,
    chunk: int | None = None,
    naive: bool = False,
    patterns: "Sequence[Pattern | None] | None" = None,
    prune_last_layer: bool = False,
    mlp_products: Sequence[int] | None = None,
) -> float:
    """Training FLOPs (forward and backward) per original token of a GPT; sizes under Megatron's names.

    Linear layers run K times; attention over the visible pairs of a sequence that is one document; the output
    layer once, on the last copy.

    Args:
        num_query_groups: number of key/value heads (equal to ``num_attention_heads`` without grouping).
        kv_channels: size of one head.
        vocab_size: rows of the output layer, padding included.
        seq_length: positions per sample.
        gated_linear_unit: True for SwiGLU and its like, whose first MLP layer is twice as wide.
        attention_output_gate: True where the first projection makes a gate for each element of the heads too.
        patterns: of each layer; None where all are full attention.
        prune_last_layer: in the last layer the copies but the last have queries, keys and values alone.
        mlp_products: multiply-adds of one row in the MLP of each layer (:func:`expert_products`); None where
            all are dense.

    Raises:
        ValueError: see :func:`visible_pairs`; or there is not one pattern for each layer.
    """
    query_size = num_attention_heads * kv_channels
    gate_size = query_size if attention_output_gate else 0
    projection = hidden_size * (query_size + gate_size + 2 * num_query_groups * kv_channels)
    if mlp_products is None:
        mlp_products = [dense_products(hidden_size, ffn_hidden_size, gated_linear_unit)] * num_layers

    def layer(pattern: "Pattern | None", mlp: int, pruned: bool) -> float:
        # the kernel of naive repetition has all copies in one sequence: it computes what is then dropped
        pairs = visible_pairs(
            seq_length,
            copies=copies,
            window=window,
            chunk=chunk,
            naive=naive,
            pattern=pattern,
            last_copy_only=pruned and not naive,
        )
        # One dot product and one weighted sum of length kv_channels for each pair and head.
        products = 2 * query_size * pairs / seq_length
        rest = hidden_size * query_size + mlp
        return copies * projection + (1 if pruned else copies) * rest + products

    *others, last = zip(_of_each_layer(patterns, num_layers), mlp_products, strict=True)
    layers = sum(layer(*each, False) for each in others) + layer(*last, prune_last_layer)
    forward = 2 * (layers + hidden_size * vocab_size)
    return 3 * forward


def dense_products(hidden_size: int, ffn_hidden_size: int, gated_linear_unit: bool) -> int:
    """Multiply-adds of one row in an MLP."""
    return hidden_size * ffn_hidden_size * (3 if gated_linear_unit else 2)


def expert_products(
    *,
    hidden_size: int,
    ffn_hidden_size: int,
    gated_linear_unit: bool,
    num_experts: int,
    topk: int,
    shared_ffn_hidden_size: int = 0,
    shared_gate: bool = False,
    latent_size: int | None = None,
) -> int:
    """Multiply-adds of one row in a mixture of experts: the router, the experts chosen, the shared ones.

    Args:
        ffn_hidden_size: of one expert.
        topk: experts that a row is sent to.
        shared_ffn_hidden_size: of all shared experts together.
        shared_gate: True where a row's share of the shared experts is learned, a number for each.
        latent_size: what rows are projected to on their way to the experts chosen, and back from.
    """
    chosen = topk * dense_products(latent_size or hidden_size, ffn_hidden_size, gated_linear_unit)
    shared = dense_products(hidden_size, shared_ffn_hidden_size, gated_linear_unit)
    return hidden_size * (num_experts + shared_gate + 2 * (latent_size or 0)) + chosen + shared


@dataclass(frozen=True)
class Traffic:
    """Elements that all ranks of a group together send, per layer and sequence."""

    forward: int
    backward: int


def context_parallel_elements(
    seq_length: int,
    *,
    ranks: int,
    comm_type: str,
    num_attention_heads: int,
    num_query_groups: int,
    kv_channels: int,
    copies: int = 1,
    window: int = 1,
    chunk: int | None = None,
    naive: bool = False,
    pattern: "Pattern | None" = None,
) -> Traffic:
    """What context parallelism sends for one layer and one sequence of one document.

    p2p and all_gather: every rank's original keys and values reach all others, and in backward once more,
    with their gradients on the way home; hidden keys and values of the window - 1 positions before a slice
    cross the border to it, unless the chunks divide the slices. a2a: each rank keeps 1/P of the queries,
    keys, values and outputs of all copies. Naive repetition exchanges all copies in any case.

    With a pattern, p2p and all_gather alike exchange those original keys and values alone that the rank's
    queries keep.

    Args:
        ranks: P, the context-parallel size.
        comm_type: as Megatron's --cp-comm-type: p2p, all_gather or a2a.
        pattern: of a sparse layer, None for full attention.

    Raises:
        ValueError: see :func:`visible_pairs`.
    """
    _check_rule(seq_length, copies, window, chunk, naive and pattern is not None)
    if comm_type == "a2a":
        heads = 2 * num_attention_heads + 2 * num_query_groups
        elements = copies * seq_length * heads * kv_channels * (ranks - 1) // ranks
        return Traffic(elements, elements)
    position = 2 * num_query_groups * kv_channels
    halo = 0
    window = min(window, seq_length, chunk or seq_length)
    if not naive and (chunk is None or seq_length // (2 * ranks) % chunk):
        # of the 2P - 1 borders one lies within a rank
        halo = 2 * (ranks - 1) * (window - 1) * (copies - 1) * position
    if pattern is not None:
        exchanged = position * sum(_fetched(seq_length, rank, ranks, pattern) for rank in range(ranks))
    else:
        exchanged = (copies if naive else 1) * seq_length * position * (ranks - 1)
    return Traffic(exchanged + halo, 2 * exchanged + halo)


def peak_flops(device_name: str, precision: Literal["bf16", "fp16", "fp8"] = "bf16") -> float | None:
    """Dense peak of one device in FLOP/s, or None where it is not known (a CPU, an unlisted GPU).

    Args:
        device_name: as ``torch.cuda.get_device_name()`` gives it, for example "NVIDIA H100 80GB HBM3".
    """
    for name, peak in _BF16_PEAKS:
        if name in device_name:
            if precision != "fp8":
                return peak
            # Ampere has no FP8; on every later device of the table it doubles the rate.
            return None if name == "A100" else 2 * peak
    return None


def mfu(*, tokens_per_second: float, flops_per_token: float, peak_flops: float) -> float:
    """Model FLOPs utilisation as a fraction: FLOPs really needed over what the devices could do.

    Args:
        tokens_per_second: original tokens, of all devices together.
        peak_flops: FLOP/s of all devices together.

    Raises:
        ValueError: ``peak_flops`` is not positive.
    """
    if peak_flops <= 0:
        raise ValueError(f"peak_flops must be positive, got {peak_flops}")
    return tokens_per_second * flops_per_token / peak_flops


def kv_cache_bytes(
    seq_length: int,
    *,
    num_layers: int,
    num_query_groups: int,
    kv_channels: int,
    bytes_per_element: int,
    copies: int = 1,
    window: int = 1,
    chunk: int | None = None,
    naive: bool = False,
    patterns: "Sequence[Pattern | None] | None" = None,
) -> int:
    """Bytes of keys and values that one sequence keeps once ``seq_length`` positions have been decoded.

    Originals: every position, as in a vanilla model. Hidden copies: only those that the next position can
    see, so none with W = 1, at most (W - 1) (K - 1) entries with a window, and with chunks none right after a
    chunk's end (arXiv 2504.14992, PHD, PHD-SWA and PHD-CSWA). Naive repetition keeps all K copies.

    A sparse layer keeps the originals alone that the next position sees, for no later one sees any other of
    them (arXiv 2410.01485, LongGen).

    Args:
        patterns: of each layer; None where all are full attention.

    Raises:
        ValueError: see :func:`visible_pairs`; or there is not one pattern for each layer.
    """
    layers = _of_each_layer(patterns, num_layers)
    _check_rule(seq_length, copies, window, chunk, naive and any(layers))
    if naive:
        hidden = (copies - 1) * seq_length
    else:
        position_in_chunk = seq_length % chunk if chunk else seq_length
        hidden = min(window - 1, position_in_chunk) * (copies - 1)
    # kept_positions counts the next position's own, which is not there yet
    originals = (seq_length if layer is None else layer.kept_positions(seq_length) - 1 for layer in layers)
    entries = sum(originals) + num_layers * hidden
    return 2 * num_query_groups * kv_channels * bytes_per_element * entries


def _of_each_layer(
    patterns: "Sequence[Pattern | None] | None", num_layers: int
) -> "Sequence[Pattern | None]":
    if patterns is None:
        return [None] * num_layers
    if len(patterns) != num_layers:
        raise ValueError(f"patterns must be one for each of {num_layers} layers, got {len(patterns)}")
    return patterns


def _pairs_of_originals(seq_length: int, pattern: "Pattern | None") -> int:
    """Pairs of an original query and an original key that see each other."""
    causal = seq_length * (seq_length + 1) // 2
    if pattern is None:
        return causal
    block, local = pattern.block, pattern.local
    # Causal pairs, less those with the blocks before the local ones (i blocks for a query of block
    # i + local - 1); but far blocks are seen by all queries at least ``local`` blocks behind them.
    behind = max(seq_length - (local - 1) * block, 0)
    blocks, rest = divmod(behind, block)
    before_local = block * (block * blocks * (blocks - 1) // 2 + rest * blocks)
    end = max(-(-seq_length // block) - local, 0)
    far = block * sum(seq_length - (j + local) * block for j in pattern.far_blocks(end))
    return causal - before_local + far


def _fetched(seq_length: int, rank: int, ranks: int, pattern: "Pattern") -> int:
    """Positions that the queries of a context-parallel rank keep and that it does not hold.

    Of P ranks, rank r holds the slices r and 2P - 1 - r of 2P.
    """
    rows = seq_length // (2 * ranks)
    held = [(part * rows, (part + 1) * rows) for part in (rank, 2 * ranks - 1 - rank)]
    needed = []
    for begin, end in held:
        # the first query reaches back furthest among the local blocks, the last one sees the most far ones
        needed.append((pattern.window_start(begin), begin))
        local = pattern.window_start(end - 1) // pattern.block
        needed += [(j * pattern.block, (j + 1) * pattern.block) for j in pattern.far_blocks(local)]
    return _length_of_union([*held, *needed]) - 2 * rows


def _length_of_union(ranges: Iterable[tuple[int, int]]) -> int:
    """How many numbers are in at least one of the half-open ranges."""
    length = reached = 0
    for begin, end in sorted(ranges):
        length += max(end - max(begin, reached), 0)
        reached = max(reached, end)
    return length


def _band_pairs(length: int, window: int) -> int:
    """Pairs of positions at distance 1..window-1 among ``length`` positions."""
    full = max(length - window, 0)
    growing = min(length, window)
    return growing * (growing - 1) // 2 + full * (window - 1)


def _check_rule(
    seq_length: int, copies: int, window: int, chunk: int | None, naive_with_pattern: bool
) -> None:
    for name, value in (("seq_length", seq_length), ("copies", copies), ("window", window), ("chunk", chunk)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if naive_with_pattern:
        raise ValueError("naive repetition has no pattern: leave one out")
