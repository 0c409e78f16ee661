"""Small models of phd.hf for tests of several folders, with weights large enough that a wrong key shows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

VOCABULARY = 97
ENGLISH = "it was the best of times, it was the worst of times, it was the age of wisdom, "
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
# K, W, C. C + 1, 2C and L(W-1)+1 = 13 lie within the lengths that the tests use.
VARIANTS = (
    *("PHD-2", "PHD-SWA-2-5-inf", "PHD-SWA-3-3-inf", "PHD-CSWA-2-16-32", "PHD-CSWA-3-5-12", "PHD-CSWA-4-4-4"),
)


@pytest.fixture(scope="session")
def make_model() -> Callable:
    """make_model("PHD-SWA-2-5-inf", **settings): 3 layers, 4 heads on 2 groups, fp32. Of all tests together:
    who changes a model takes a copy.
    """
    from phd.hf import PHDLlamaConfig, PHDLlamaForCausalLM

    models: dict = {}

    def make(variant: str, **settings):
        key = (variant, *sorted(settings.items()))
        if key not in models:
            config = PHDLlamaConfig(**SHAPE, phd_variant=variant)
            for name, value in settings.items():
                setattr(config, name, value)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                models[key] = PHDLlamaForCausalLM(config).eval()
            with torch.no_grad():  # text of its own has no padding in it
                models[key].lm_head.weight[0] = 0
            tell_copies_apart(models[key])
        return models[key]

    return make


@pytest.fixture(scope="session")
def ids() -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (2, 76), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def tiny_folder(make_model, tmp_path_factory):
    """A random model of 97 tokens, whose copies have tables, and a tokenizer of as many."""
    import sentencepiece

    from phd.hf.tokenizer import load_tokenizer

    path = tmp_path_factory.mktemp("model")
    text = ENGLISH
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text] * 5), model_prefix=str(path / "t"), vocab_size=40, model_type="bpe",
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    make_model("PHD-CSWA-3-5-12+table").save_pretrained(path)
    load_tokenizer(path / "t.model").save_pretrained(path)
    return path


def tell_copies_apart(model) -> None:
    """Random weights in place of those with which all copies enter alike."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.model.copy_embedding.parameters():
            parameter.normal_(0, 0.3, generator=generator)


def llama_logits(model, ids: torch.Tensor) -> torch.Tensor:
    """Logits of all positions by transformers' Llama, on one sequence of all copies under the rule's mask."""
    from transformers import LlamaConfig, LlamaForCausalLM

    rule, embedding = model.config.rules[0], model.model.copy_embedding
    copies, length = rule.copies, ids.shape[1]
    settings = {name: x for name, x in model.config.to_dict().items() if not name.startswith("phd_")}
    llama = LlamaForCausalLM(LlamaConfig(**settings | {"model_type": "llama"})).to(model.dtype).eval()
    found = llama.load_state_dict(model.state_dict(), strict=False)
    assert not found.missing_keys
    position, copy = torch.arange(length).repeat_interleave(copies.count), torch.arange(copies.count)
    copy = copy.repeat(length)
    mask = rule.sees(position[:, None], copy[:, None], position, copy)
    own = [model.model.embed_tokens(ids)] * copies.count
    for index, vector in enumerate(embedding.vectors.parameters()):
        own[index + 1] = own[0] + vector
    for index, table in enumerate(embedding.tables):
        own[index + 1] = table(ids)
    with torch.no_grad():
        return llama(
            inputs_embeds=torch.stack(own, dim=2).flatten(1, 2),
            attention_mask=mask.expand(len(ids), 1, -1, -1),
            position_ids=(copies.count * position + copy if copies.consecutive else position)[None],
            use_cache=False,
        ).logits[:, copies.hidden :: copies.count]


def reference_logits(model, ids: torch.Tensor) -> torch.Tensor:
    """Logits of all positions through the dense mask of the one rule, no cache."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return model(ids, use_cache=False).logits
    finally:
        model.set_attn_implementation(implementation)


def cache_bytes(config, length: int, samples: int = 1, element_size: int = 4) -> int:
    """The formula's, of a cache of ``length`` positions of each sample."""
    from phd.hf.convert import attention_shape

    return samples * config.variant.kv_cache_bytes(attention_shape(config), length, element_size)


def left_padded(ids: torch.Tensor, padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The second sample is shorter; and the mask."""
    padded, mask = torch.stack([ids[0], ids[1].roll(padding)]), torch.ones_like(ids)
    padded[1, :padding] = mask[1, :padding] = 0
    return padded, mask


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=3e-5)


def assert_close_in_half_precision(model, ids: torch.Tensor) -> None:
    """A prompt of 17 tokens and 10 steps give the dense rule's logits, as far as rounding lets them."""
    expected = reference_logits(model, ids)
    with torch.no_grad():
        output = model(ids[:, :17], logits_to_keep=1)
        for position in range(17, 27):
            torch.testing.assert_close(output.logits[:, 0], expected[:, position - 1], rtol=0.1, atol=0.1)
            output = model(ids[:, position : position + 1], past_key_values=output.past_key_values)
