"""Run by test_fused.py under Triton's interpreter: models whose rows attend by the kernel; errors as JSON."""

import json
import sys
from collections.abc import Iterator
from typing import Any

import torch

from phd.attention.kernels import triton_rows
from phd.hf import PHDCache, PHDLlamaConfig, PHDLlamaForCausalLM
from phd.hf.modeling import PHDLlamaModel
from tests.models import SHAPE, VOCABULARY, reference_logits, tell_copies_apart

PROMPT, END = 22, 25
"""Columns; the steps cross the chunk's border at 24."""


def model_of(variant: str) -> Any:
    torch.manual_seed(1)
    model = PHDLlamaForCausalLM(PHDLlamaConfig(**SHAPE | {"num_hidden_layers": 2}, phd_variant=variant))
    tell_copies_apart(model)
    return model.eval()


class Counted:
    """A kernel that counts its launches."""

    def __init__(self, kernel) -> None:
        self.kernel, self.launches = kernel, 0

    def __getitem__(self, grid):
        self.launches += 1
        return self.kernel[grid]


def as_on_a_gpu(self, embeddings: torch.Tensor) -> bool:
    return not torch.is_grad_enabled() and self.config._attn_implementation != "eager"


def steps(
    model, tokens: torch.Tensor, cache: PHDCache, mask: torch.Tensor | None = None, step=None
) -> torch.Tensor:
    """Logits of a prompt's last token and of the steps after it."""
    found = []
    for begin, end in ((0, PROMPT), *((at, at + 1) for at in range(PROMPT, END))):
        call = model if begin == 0 or step is None else step
        seen = None if mask is None else mask[:, :end]
        found.append(call(tokens[:, begin:end], seen, past_key_values=cache, logits_to_keep=1).logits)
    return torch.cat(found, dim=1)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def cases(variant: str, tokens: torch.Tensor, brief: bool) -> Iterator[tuple[str, float]]:
    """Name and error; ``brief``: of each code path one of the ways that lead to it."""
    model = model_of(variant)
    expected = reference_logits(model, tokens)
    positions = slice(PROMPT - 1, END)
    with torch.no_grad():
        if not brief:
            static = PHDCache(model.config, max_cache_len=END)
            yield "static", error(steps(model, tokens, static), expected[:, positions])
            yield "growing", error(steps(model, tokens, PHDCache(model.config)), expected[:, positions])
            yield "all logits", error(model(tokens[:, :END], use_cache=False).logits, expected[:, :END])
            static.reset()
            step = torch.compile(model.forward, fullgraph=True, backend="aot_eager", dynamic=False)
            yield "compiled", error(steps(model, tokens, static, step=step), expected[:, positions])
            # several tokens after a cache, then a rollback
            cache = PHDCache(model.config)
            model(tokens[:, :20], past_key_values=cache, logits_to_keep=1)
            found = model(tokens[:, 20:END], past_key_values=cache).logits
            yield "several", error(found, expected[:, 20:END])
            cache.crop(23 - END)
            found = model(tokens[:, 23:24], past_key_values=cache).logits
            yield "rolled back", error(found, expected[:, 23:24])
        # the second row begins five columns later
        padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), tokens[1:, :-5]], dim=1)
        padded = torch.cat([tokens[:1], padded])
        mask = torch.ones_like(padded)
        mask[1, :5] = 0
        for kind, room in (("padded static", END), ("padded", None))[: 1 if brief else 2]:
            cache = PHDCache(model.config, max_cache_len=room)
            logits = steps(model, padded, cache, mask)
            yield kind, error(logits[0], expected[0, positions])
            yield f"{kind}, its row", error(logits[1], expected[1, PROMPT - 6 : END - 5])
        if brief:
            return
        settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        ours = model.generate(padded[:, :PROMPT], attention_mask=mask[:, :PROMPT], **settings)
    # with gradients the kernel is not taken
    with torch.enable_grad():
        theirs = padded[:, :PROMPT]
        for _ in range(4):
            now = torch.nn.functional.pad(mask[:, :PROMPT], (0, theirs.shape[1] - PROMPT), value=1)
            theirs = torch.cat([theirs, model(theirs, now, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    yield "generated", float(torch.ne(ours, theirs).sum())


def main() -> None:
    PHDLlamaModel._fuses = as_on_a_gpu  # type: ignore[method-assign]
    kernel = triton_rows._split_kernel = Counted(triton_rows._split_kernel)
    tokens = torch.randint(1, VOCABULARY, (2, 76), generator=torch.Generator().manual_seed(0))
    errors = dict(cases(sys.argv[1], tokens, brief="brief" in sys.argv))
    json.dump({"launches": kernel.launches, "errors": errors}, sys.stdout)


if __name__ == "__main__":
    main()
