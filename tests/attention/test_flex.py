"""FlexAttention's outputs, all that torch offers of it on a CPU, and what its block mask leaves out."""

import pytest
import torch

from phd.attention import flex, naive_attention, phd_attention
from phd.attention.pattern import Pattern
from tests.attention.test_attention import VARIANTS, random_inputs, starts_of

LENGTH = 71
DOCUMENTS = starts_of((1, 30, 2, 14, 24), (71,))


@pytest.mark.parametrize("last_copy_only", [False, True], ids=["all", "last"])
@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "packed"])
@pytest.mark.parametrize(("copies", "window", "chunk"), VARIANTS[::4])
def test_outputs_equal_the_reference(copies, window, chunk, documents, last_copy_only):
    inputs = random_inputs(LENGTH, 2 * copies, dim=16, dtype=torch.float32)[:3]
    arguments = {
        "copies": copies,
        "window": window,
        "chunk": chunk,
        "document_starts": documents,
        "last_copy_only": last_copy_only,
    }
    out = phd_attention(*inputs, backend="flex", **arguments)
    expected = phd_attention(*(x.double() for x in inputs), backend="reference", **arguments)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def test_blocks_without_a_visible_pair_are_skipped():
    mask = flex._one_document_mask(2048, 2, 2, 16, 32, None, torch.device("cpu"))
    assert mask.sparsity() > 45  # per cent: the future
    packed = flex._rule(2, 2, 16, 32, None, torch.arange(2048)[None] // 512 * 512)
    mask = flex._block_mask(packed, 1, 2048, 2, 2, torch.device("cpu"))
    assert mask.sparsity() > 80  # and other documents
    sparse = flex._one_document_mask(2048, 2, 2, 16, 32, Pattern(64, 1, 2), torch.device("cpu"))
    assert sparse.sparsity() > 85  # and what a sparse layer drops


def test_refusals():
    inputs = random_inputs(9, 4)[:3]
    with pytest.raises(ValueError, match="'flex' has no backward on a CPU"):
        phd_attention(*(x.requires_grad_() for x in inputs), copies=2, window=4, backend="flex")
    with pytest.raises(ValueError, match="'flex' has the rule of PHD alone"):
        naive_attention(*inputs, copies=2, backend="flex")
