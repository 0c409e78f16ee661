"""FlexAttention's outputs, all that torch offers of it on a CPU, and what its block mask leaves out."""

import pytest
import torch

from phd.attention import flex, naive_attention, phd_attention, phd_layout
from phd.attention.pattern import Pattern
from tests.attention.test_attention import VARIANTS, random_inputs, starts_of

LENGTH = 71
DOCUMENTS = starts_of((1, 30, 2, 14, 24), (71,))


@pytest.mark.parametrize("last_copy_only", [False, True], ids=["all", "last"])
@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "packed"])
@pytest.mark.parametrize(("copies", "window", "chunk"), VARIANTS[::7])
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


def block_mask(document_starts=None, pattern=None):
    layout = phd_layout(2048, copies=2, window=16, chunk=32, document_starts=document_starts)
    return flex.block_mask(layout, 2, 2, 16, 32, pattern, torch.device("cpu"))


def test_blocks_without_a_visible_pair_are_skipped():
    assert block_mask().sparsity() > 45  # per cent: the future
    assert block_mask(torch.arange(2048)[None] // 512 * 512).sparsity() > 80  # and other documents
    assert block_mask(pattern=Pattern(64, 1, 2)).sparsity() > 85  # and what a sparse layer drops


def test_one_mask_serves_all_layers(monkeypatch):
    made = []
    create = flex.create_block_mask
    monkeypatch.setattr(flex, "create_block_mask", lambda *a, **k: made.append(a) or create(*a, **k))
    inputs = random_inputs(LENGTH, 2 * len(DOCUMENTS), dtype=torch.float32)[:3]
    layout = phd_layout(LENGTH, copies=2, window=4, chunk=8, document_starts=DOCUMENTS)
    rule = {"copies": 2, "window": 4, "chunk": 8, "document_starts": DOCUMENTS}
    for _ in range(3):
        phd_attention(*inputs, **rule, layout=layout, backend="flex")
    assert len(made) == 1


@pytest.mark.parametrize("documents", [None, torch.arange(2048)[None] // 64 * 64], ids=["one", "packed"])
def test_a_mask_of_an_evaluation_serves_training(documents):
    """Tensors made in inference mode cannot be saved for a backward."""
    flex.block_mask.cache_clear()
    with torch.inference_mode():
        mask = block_mask(None if documents is None else documents.clone())
    tensors = [x for x in mask.as_tuple() if isinstance(x, torch.Tensor)]
    starts = dict(zip(mask.mask_mod.__code__.co_freevars, mask.mask_mod.__closure__, strict=True))["starts"]
    tensors += [] if documents is None else [starts.cell_contents]
    assert len(tensors) >= 8
    assert not any(x.is_inference() for x in tensors)


def test_masks_are_made_block_by_block_on_cuda(monkeypatch):
    """Uncompiled, create_block_mask makes the whole square: no GPU has the memory."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f: lambda *a, **k: compiled.append((f, k["device"])))
    monkeypatch.setattr(flex, "_compiled", flex._compiled.__wrapped__)
    layout = phd_layout(2048, copies=2, window=16, chunk=32)
    flex.block_mask.make(layout, 2, 2, 16, 32, None, torch.device("cuda", 1))  # a GPU that is not there
    assert compiled == [(flex.create_block_mask, "cuda:1")]


def test_refusals():
    inputs = random_inputs(9, 4)[:3]
    with pytest.raises(ValueError, match="'flex' has no backward on a CPU"):
        phd_attention(*(x.requires_grad_() for x in inputs), copies=2, window=4, backend="flex")
    with pytest.raises(ValueError, match="'flex' has the rule of PHD alone"):
        naive_attention(*inputs, copies=2, backend="flex")
