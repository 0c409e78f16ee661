"""Attention between the K copies of every token. Torch only: no Megatron, no model.

>>> rule = Variant.parse("PHD-CSWA-2-16-32").layers(1)[0]
>>> attention(query, key, value, Layout.of(rule, length))

Legend: s_l rows on this context-parallel rank (all of the sequence without one), b samples, K copies, h query
heads, g key/value heads, d head dimension. Row of the batch axis = sample * K + copy; copy 0 is the original
token.
"""

from torch import Tensor

from phd.attention.context_parallel import heads_to_positions, positions_to_heads
from phd.attention.flash import flash_attention
from phd.attention.inputs import Inputs, checked, nothing
from phd.attention.layout import Layout
from phd.attention.reference import reference


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    *,
    scale: float | None = None,
    last_copy_only: bool = False,
) -> Tensor:
    """Causal self-attention by the layout's rule: PHD, PHD-SWA, PHD-CSWA (arXiv 2504.14992, section 3), naive
    repetition (its Figure 1), and the keys that a sparse layer keeps, in all heads or by head.

    Args:
        query: [s_l, b*K, h, d].
        key, value: [s_l, b*K, g, d]; g divides h (grouped queries).
        layout: of these rows and heads.
        scale: of the softmax; default d ** -0.5.
        last_copy_only: compute the output of the last copy alone (a last layer needs no other).

    Returns:
        [s_l, b*K, h, d], or [s_l, b, h, d] with ``last_copy_only``; empty for no positions or samples.

    Raises:
        ValueError: shapes do not fit each other or the layout; names the argument.
    """
    inputs = checked(query, key, value, layout, scale, last_copy_only)
    copies = layout.rule.copies
    if not query.numel():
        return nothing(query, key, value, copies.count, last_copy_only)
    if not copies.cached:
        return _attend(inputs, layout).flatten(1, 2)
    # one copy of a sequence K times as long: [s_l, b, K, h, d] -> [s_l*K, b, 1, h, d]
    query, key, value = (
        x.transpose(1, 2).flatten(0, 1).unsqueeze(2) for x in (inputs.query, inputs.key, inputs.value)
    )
    context = _attend(Inputs(query, key, value, inputs.scale), layout)
    context = context.squeeze(2).unflatten(0, (-1, copies.count)).transpose(1, 2)
    return context[:, :, -1] if last_copy_only else context.flatten(1, 2)


BACKENDS = {"flash": attention, "reference": reference}
"""By the values of --phd-attention-backend: the fast path, and the dense one for checks."""


def _attend(inputs: Inputs, layout: Layout) -> Tensor:
    """[s_l, b, m, h, d]."""
    parallel = layout.parallel
    if parallel is None or parallel.comm_type != "a2a":
        return flash_attention(inputs.query, inputs.key, inputs.value, layout, inputs.scale)
    parallel.share_of(inputs.key.shape[3])
    # slices of positions with all heads -> all positions with a slice of the heads, and back
    query, key, value = (
        positions_to_heads(x.flatten(1, 2), parallel).unflatten(1, (-1, x.shape[2]))
        for x in (inputs.query, inputs.key, inputs.value)
    )
    context = flash_attention(query, key, value, layout, inputs.scale)
    return heads_to_positions(context.flatten(1, 2), parallel).unflatten(1, context.shape[1:3])
