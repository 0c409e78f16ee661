"""The same on a GPU. (Written on a machine without one: not run yet.)"""

import pytest
import torch

from phd.hf import PHDCache
from tests.models import VARIANTS, reference_logits

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prompt_and_steps(variant, dtype, make_model, ids):
    model = make_model(variant, name="gpu").to("cuda", dtype)
    tokens = ids.cuda()
    expected = reference_logits(model, tokens)
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.2}
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, use_cache=False).logits, expected, **tolerance)
        output = model(tokens[:, :17], logits_to_keep=1)
        for position in range(17, 45):
            torch.testing.assert_close(output.logits[:, 0], expected[:, position - 1], **tolerance)
            output = model(tokens[:, position : position + 1], past_key_values=output.past_key_values)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_graphed_step(variant, make_model, ids):
    """Captured once, replayed at every length."""
    model = make_model(variant, name="gpu").to("cuda", torch.float32)
    tokens = ids.cuda()
    expected = reference_logits(model, tokens)
    cache = PHDCache(model.config, max_cache_len=ids.shape[1])
    token = tokens[:, 17:18].clone()
    with torch.inference_mode():
        model(tokens[:, :17], past_key_values=cache, logits_to_keep=1)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            model(token, past_key_values=cache)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        token.copy_(tokens[:, 18:19])
        with torch.cuda.graph(graph):
            logits = model(token, past_key_values=cache).logits
        for position in range(18, 45):
            token.copy_(tokens[:, position : position + 1])
            graph.replay()
            torch.testing.assert_close(logits[:, 0], expected[:, position], rtol=1e-3, atol=1e-3)
