"""The same on a GPU. (Written on a machine without one: not run yet.)"""

import copy

import pytest
import torch

from phd.hf import PHDCache, PHDLlamaConfig, PHDLlamaForCausalLM
from tests.models import VARIANTS, reference_logits

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
TOLD_APART = ("PHD-CSWA-3-5-12+vector", "PHD-SWA-2-5-inf+table")


def prompt_and_steps(model, tokens):
    """All logits at once, and those of a prompt of 17 tokens and of the steps after it."""
    with torch.no_grad():
        output = model(tokens[:, :17], logits_to_keep=1)
        logits = [output.logits]
        for position in range(17, 45):
            output = model(tokens[:, position : position + 1], past_key_values=output.past_key_values)
            logits.append(output.logits)
        return {
            slice(None): model(tokens, use_cache=False).logits,
            slice(16, 45): torch.cat(logits, dim=1),
        }


@pytest.mark.parametrize("variant", [*VARIANTS, *TOLD_APART, "naive-2-consecutive+table"])
def test_prompt_and_steps(variant, make_model, ids):
    model = make_model(variant, name="gpu").to(DEVICE, torch.float32)
    tokens = ids.to(DEVICE)
    expected = reference_logits(model, tokens)
    for positions, logits in prompt_and_steps(model, tokens).items():
        torch.testing.assert_close(logits, expected[:, positions], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_prompt_and_steps_in_bf16(variant, make_model, ids):
    """At the position where the error is the largest (root mean square over the vocabulary), it may be twice
    that of the dense rule computed in bf16 throughout; both against fp32 on the same weights.
    """
    model = make_model(variant, name="gpu").to(DEVICE, torch.bfloat16)
    tokens = ids.to(DEVICE)
    plain, exact = reference_logits(model, tokens), reference_logits(copy.deepcopy(model).float(), tokens)
    for positions, logits in prompt_and_steps(model, tokens).items():
        error, allowed = (
            (x.float() - exact[:, positions]).square().mean(-1).sqrt().max().item()
            for x in (logits, plain[:, positions])
        )
        assert error <= 2 * allowed


def graphed_steps(model, tokens, prompt: int) -> torch.Tensor:
    """Logits of the steps after a prompt and one token: captured once, replayed at every length."""
    cache = PHDCache(model.config, max_cache_len=tokens.shape[1])
    token = tokens[:, prompt : prompt + 1].clone()
    found = []
    with torch.inference_mode():
        model(tokens[:, :prompt], past_key_values=cache, logits_to_keep=1)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            model(token, past_key_values=cache)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = model(token, past_key_values=cache).logits
        for position in range(prompt + 1, tokens.shape[1]):
            token.copy_(tokens[:, position : position + 1])
            graph.replay()
            found.append(logits.clone())
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("variant", ["vanilla", *VARIANTS, *TOLD_APART])
def test_a_graphed_step(variant, make_model, ids):
    model = make_model(variant, name="gpu").to(DEVICE, torch.float32)
    tokens = ids.to(DEVICE)
    expected = reference_logits(model, tokens)[:, 18:]
    torch.testing.assert_close(graphed_steps(model, tokens, 17), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("copies", "length"), [(1, 2100), (2, 2100), (16, 700), (64, 200)])
def test_graphed_steps_in_bf16_at_the_size_of_the_benchmark(copies, length):
    """Heads of the 550M, many keys, many copies; the allowed error as above."""
    torch.manual_seed(0)
    config = PHDLlamaConfig(
        vocab_size=97, hidden_size=1536, intermediate_size=512, num_hidden_layers=2, num_attention_heads=16,
        num_key_value_heads=4, max_position_embeddings=4096, initializer_range=0.05, pad_token_id=0,
        phd_copies=copies, phd_window=16, phd_chunk=32,
    )  # fmt: skip
    model = PHDLlamaForCausalLM(config).eval().to(DEVICE, torch.bfloat16)
    tokens = torch.randint(1, 97, (1, length), device=DEVICE)
    prompt = length - 40
    plain, exact = reference_logits(model, tokens), reference_logits(copy.deepcopy(model).float(), tokens)
    error, allowed = (
        (x.float() - exact[:, prompt + 1 :]).square().mean(-1).sqrt().max().item()
        for x in (graphed_steps(model, tokens, prompt), plain[:, prompt + 1 :])
    )
    assert error <= 2 * allowed
