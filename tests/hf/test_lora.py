"""Adapters merged into weights, against peft's."""

import torch

from phd.hf.convert import LAYERS, QKV, hf_weights, join_qkv
from phd.hf.lora import merged

RANK, ALPHA = 3, 12
SLOTS = {
    "q_proj": "linear_qkv.lora.query_",
    "k_proj": "linear_qkv.lora.key_",
    "v_proj": "linear_qkv.lora.value_",
}
SLOTS |= {"o_proj": "linear_proj.lora."}


def test_merged_weights_are_those_of_peft():
    """Grouped queries: three adapters of one fused layer. Weights, and logits with adapters unmerged."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=31, hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=8, initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    base = LlamaForCausalLM(config).eval()
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    adapted = get_peft_model(
        base, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=[*SLOTS], init_lora_weights=False)
    ).eval()
    ids = torch.randint(0, 31, (2, 9))
    with torch.no_grad():
        expected = adapted(ids).logits
    adapters = {}
    for index, layer in enumerate(adapted.base_model.model.model.layers):
        for target, slot in SLOTS.items():
            module = getattr(layer.self_attn, target)
            for matrix, linear in (("a", module.lora_A), ("b", module.lora_B)):
                adapters[f"{LAYERS}self_attention.{slot}{matrix}", index] = linear["default"].weight.detach()

    def read(name: str, layer: int | None) -> torch.Tensor:
        if (name, layer) in adapters:
            return adapters[name, layer]
        prefix = f"model.layers.{layer}."
        if name == LAYERS + QKV:
            query, key, value = (weights[f"{prefix}self_attn.{part}_proj.weight"] for part in "qkv")
            return join_qkv(query, key, value, config)
        if name == f"{LAYERS}mlp.linear_fc1.weight":
            return torch.cat([weights[f"{prefix}mlp.{part}_proj.weight"] for part in ("gate", "up")])
        names = {
            "embedding.word_embeddings.weight": "model.embed_tokens.weight",
            "decoder.final_layernorm.weight": "model.norm.weight",
            "output_layer.weight": "lm_head.weight",
            f"{LAYERS}self_attention.linear_qkv.layer_norm_weight": f"{prefix}input_layernorm.weight",
            f"{LAYERS}mlp.linear_fc1.layer_norm_weight": f"{prefix}post_attention_layernorm.weight",
            f"{LAYERS}self_attention.linear_proj.weight": f"{prefix}self_attn.o_proj.weight",
            f"{LAYERS}mlp.linear_fc2.weight": f"{prefix}mlp.down_proj.weight",
        }
        return weights[names[name]]

    found = dict(hf_weights(merged(read, config, ALPHA / RANK), config))
    theirs = adapted.merge_and_unload().state_dict()
    assert found.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
        assert torch.equal(tensor, weights[name]) != (name.split(".")[-2] in SLOTS)
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(found)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)
