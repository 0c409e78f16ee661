"""The arguments of an attention call, checked against its layout.

Legend: s_l rows on this rank, b samples, K copies, m of them among the queries (all, or the last), h query
heads, g key/value heads, d head dimension.
"""

from dataclasses import dataclass

from torch import Tensor

from phd.attention.layout import Layout


@dataclass(frozen=True)
class Inputs:
    """Query [s_l, b, m, h, d], key and value [s_l, b, K, g, d], and the softmax scale."""

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float


def checked(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None, last_copy_only: bool
) -> Inputs:
    """Query [s_l, b*K, h, d], key and value [s_l, b*K, g, d], with the batch axis apart.

    Raises:
        ValueError: shapes or dtypes do not fit each other or the layout; names the argument.
    """
    copies = layout.rule.copies.count
    if query.dim() != 4:
        raise ValueError(f"query must be [s, b*K, h, d], got shape {tuple(query.shape)}")
    length, rows, heads, dim = query.shape
    if not heads or not dim or (key.dim() == 4 and not key.shape[2]):
        raise ValueError(
            f"query and key need at least 1 head of 1 dimension, got {tuple(query.shape)} and "
            f"{tuple(key.shape)}"
        )
    if rows % copies:
        raise ValueError(
            f"query has {rows} rows, which K = {copies} does not divide: row = sample * K + copy"
        )
    if length != layout.local_positions:
        raise ValueError(f"query has {length} positions, its layout {layout.local_positions}")
    if layout.document_starts is not None and len(layout.document_starts) != rows // copies:
        raise ValueError(
            f"document_starts must be [b, s] with b = {rows // copies} samples, the layout has "
            f"{len(layout.document_starts)}"
        )
    if (
        key.shape != value.shape
        or key.dim() != 4
        or key.shape[:2] != (length, rows)
        or key.shape[3] != dim
        or heads % key.shape[2]
    ):
        raise ValueError(
            f"key and value must be [s, b*K, g, d] with g dividing {heads} and the rest as query "
            f"{tuple(query.shape)}, got {tuple(key.shape)} and {tuple(value.shape)}"
        )
    if layout.heads not in (None, key.shape[2]):
        raise ValueError(
            f"key has {key.shape[2]} heads, the layout's rule {layout.rule.keys} is for {layout.heads}"
        )
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(
            f"query, key and value must have one dtype, got {query.dtype}, {key.dtype} and {value.dtype}"
        )
    # [s_l, b*K, h, d] -> [s_l, b, K, h, d]
    query, key, value = (x.unflatten(1, (-1, copies)) for x in (query, key, value))
    if last_copy_only and not layout.rule.copies.cached:
        query = query[:, :, -1:]
    return Inputs(query, key, value, dim**-0.5 if scale is None else scale)


def nothing(query: Tensor, key: Tensor, value: Tensor, copies: int, last_copy_only: bool) -> Tensor:
    """Attention of no positions or no samples; gradients of all three are as empty."""
    rows = query[:, copies - 1 :: copies] if last_copy_only else query
    return rows + key.sum() + value.sum()
