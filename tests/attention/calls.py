"""Attention as the tests call it: the rule by its name and keys, the layout made for each call."""

from typing import Any

from torch import Tensor

from phd.attention import BACKENDS, Layout
from phd.attention.context_parallel import ContextParallel
from phd.rules.copies import Copies
from phd.rules.keys import Full, Keys
from phd.rules.rule import AttentionRule

FULL = Full()


def rule_of(copies: int | str, window: int = 1, chunk: int | None = None, keys: Keys = FULL) -> AttentionRule:
    """Of K, W and C, or of a name as "naive-3"; on the keys that a layer keeps."""
    if isinstance(copies, str):
        return AttentionRule(Copies.parse(copies), keys)
    return AttentionRule(Copies(copies, window, chunk), keys)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rule: AttentionRule,
    *,
    backend: str = "flash",
    document_starts: Tensor | None = None,
    parallel: ContextParallel | None = None,
    **settings: Any,
) -> Tensor:
    """Query [s_l, b*K, h, d], key and value [s_l, b*K, g, d] -> [s_l, b*K, h, d]."""
    length = len(query) * (1 if parallel is None else parallel.size)
    layout = Layout.of(rule, length, document_starts=document_starts, parallel=parallel, device=query.device)
    return BACKENDS[backend](query, key, value, layout, **settings)
