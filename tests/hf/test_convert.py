"""Megatron's names, shapes and flags against Llama's, without either."""

import json
from argparse import Namespace

import pytest
import torch
from transformers import LlamaConfig

from phd.hf import PHDLlamaConfig
from phd.hf.convert import (
    check_names,
    expected_shapes,
    hf_config,
    hf_weights,
    join_qkv,
    megatron_flags,
    megatron_weight,
    split_qkv,
)
from phd.rules.copies import Copies
from phd.rules.pattern import LayerPattern
from phd.rules.variant import Variant

CONFIG = LlamaConfig(
    vocab_size=20, hidden_size=12, intermediate_size=10, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=4, tie_word_embeddings=False,
)  # fmt: skip
ARGS = {
    "num_layers": 2, "hidden_size": 12, "ffn_hidden_size": 10, "num_attention_heads": 4, "kv_channels": 4,
    "group_query_attention": True, "num_query_groups": 2, "max_position_embeddings": 64,
    "layernorm_epsilon": 1e-5, "rotary_base": 10000, "use_rope_scaling": False, "rope_scaling_factor": 8.0,
    "init_method_std": 0.02, "untie_embeddings_and_output_weights": True,
    "normalization": "RMSNorm", "swiglu": True, "add_bias_linear": False,
    "add_qkv_bias": False, "qk_layernorm": False, "qk_l2_norm": False, "layernorm_zero_centered_gamma": False,
    "apply_residual_connection_post_layernorm": False, "glu_linear_offset": 0.0,
    "activation_func_clamp_value": None, "position_embedding_type": "rope", "rotary_percent": 1.0,
    "rotary_interleaved": False, "rotary_seq_len_interpolation_factor": None, "no_rope_freq": None,
    "num_experts": None, "multi_latent_attention": False, "mtp_num_layers": None, "window_size": None,
    "softmax_type": "vanilla", "attention_output_gate": False,
}  # fmt: skip


def args(**changes) -> Namespace:
    return Namespace(**{**ARGS, **changes})


def checkpoint() -> dict[str, torch.Tensor]:
    """Megatron's stacked tensors of CONFIG, each number different; the vocabulary padded to 24."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "embedding.word_embeddings.weight": (24, 12),
        "output_layer.weight": (24, 12),
        "decoder.final_layernorm.weight": (12,),
        "decoder.layers.self_attention.linear_qkv.weight": (2, 32, 12),
        "decoder.layers.self_attention.linear_qkv.layer_norm_weight": (2, 12),
        "decoder.layers.self_attention.linear_proj.weight": (2, 12, 16),
        "decoder.layers.mlp.linear_fc1.weight": (2, 20, 12),
        "decoder.layers.mlp.linear_fc1.layer_norm_weight": (2, 12),
        "decoder.layers.mlp.linear_fc2.weight": (2, 12, 10),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_query_key_value_rows():
    """Megatron keeps a group's heads together: queries 0, 1, key 0, value 0, queries 2, 3, key 1, value 1."""
    rows = torch.arange(8).repeat_interleave(4)[:, None].expand(32, 12).float()
    query, key, value = split_qkv(rows, CONFIG)
    assert query[::4, 0].tolist() == [0, 1, 4, 5]
    assert key[::4, 0].tolist() == [2, 6]
    assert value[::4, 0].tolist() == [3, 7]
    weight = torch.randn(32, 12)
    assert torch.equal(join_qkv(*split_qkv(weight, CONFIG), CONFIG), weight)


def test_there_and_back():
    tensors = checkpoint()

    def read(name, layer):
        return tensors[name] if layer is None else tensors[name][layer]

    weights = dict(hf_weights(read, CONFIG))
    assert {name: tuple(x.shape) for name, x in weights.items()} == expected_shapes(CONFIG)
    for name, tensor in tensors.items():
        if "layers" not in name:
            back = megatron_weight(name, weights.__getitem__, CONFIG, len(tensor))
            assert torch.equal(back[:20], tensor[:20])
            assert not back[20:].any()
            continue
        for layer in range(2):
            own = name.replace("layers.", f"layers.{layer}.")
            back = megatron_weight(own, weights.__getitem__, CONFIG, len(tensor))
            assert torch.equal(back, tensor[layer])
    norms = ("input_layernorm", "post_attention_layernorm"), ("input_layernorm", "pre_mlp_layernorm")
    for theirs, ours in zip(*norms, strict=True):
        back = megatron_weight(f"decoder.layers.1.{ours}.weight", weights.__getitem__, CONFIG, 12)
        assert torch.equal(back, weights[f"model.layers.1.{theirs}.weight"])


@pytest.mark.parametrize(
    "name", ["PHD-CSWA-3-5-12+vector", "PHD-3+table+1sink.4.1.2-1full", "naive-2-consecutive+table"]
)
def test_copy_embedding_there_and_back(name):
    """A tensor for each hidden copy by Megatron's name; tables lose the padding of the vocabulary."""
    variant, generator = Variant.parse(name), torch.Generator().manual_seed(1)
    config = hf_config(args(), 20, torch.float32, variant)
    assert isinstance(config, PHDLlamaConfig) and config.phd_variant == name
    tensors = checkpoint()
    hidden = range(variant.copies.hidden)
    spelling, shape = "copy_embedding.tables.{}.word_embeddings.weight", (24, 12)
    if variant.embedding == "vector":
        spelling, shape = "copy_embedding.vectors.{}", (12,)
    own = {spelling.format(index): torch.randn(shape, generator=generator) for index in hidden}
    tensors |= own

    def read(name, layer):
        return tensors[name] if layer is None else tensors[name][layer]

    weights = dict(hf_weights(read, config))
    assert {name: tuple(x.shape) for name, x in weights.items()} == expected_shapes(config)
    check_names({name: tuple(x.shape) for name, x in weights.items()}, config)
    assert len([name for name in weights if "copy_embedding" in name]) == len(own)
    for name, tensor in own.items():
        back = megatron_weight(name, weights.__getitem__, config, len(tensor))
        assert torch.equal(back[:20], tensor[:20])
        assert back.shape == tensor.shape and not back[20:].any()
        with pytest.raises(ValueError, match=f"{name}: a Llama model has no such weight"):
            megatron_weight(name, weights.__getitem__, CONFIG, len(tensor))
        tensors[name] = torch.zeros(7, 7)
        with pytest.raises(ValueError, match=rf"the tensor {name} is \[7, 7\]"):
            dict(hf_weights(read, config))
        tensors[name] = tensor
    flags = megatron_flags(config)
    assert flags[flags.index("--variant") + 1] == str(variant)
    assert ("--no-rope-fusion" in flags) == variant.copies.consecutive


def test_configuration_of_vanilla_and_phd():
    vanilla = hf_config(args(), 20, torch.bfloat16, Variant())
    assert type(vanilla) is LlamaConfig
    assert (vanilla.num_key_value_heads, vanilla.head_dim, vanilla.tie_word_embeddings) == (2, 4, False)
    assert str(vanilla.dtype).endswith("bfloat16")
    phd = hf_config(args(), 20, torch.float32, Variant.parse("PHD-SWA-3-16-inf"))
    assert isinstance(phd, PHDLlamaConfig)
    assert phd.phd_variant == "PHD-SWA-3-16-inf"
    everyone = hf_config(args(group_query_attention=False, num_query_groups=1), 20, torch.float32, Variant())
    assert everyone.num_key_value_heads == 4
    scaled = hf_config(args(use_rope_scaling=True), 20, torch.float32, Variant())
    assert scaled.rope_parameters["rope_type"] == "llama3"
    assert scaled.rope_parameters["factor"] == 8.0


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"normalization": "LayerNorm"}, "--normalization"),
        ({"swiglu": False}, "--swiglu"),
        ({"add_bias_linear": True}, "--disable-bias-linear"),
        ({"qk_layernorm": True}, "--qk-layernorm"),
        ({"layernorm_zero_centered_gamma": True}, "--apply-layernorm-1p"),
        ({"rotary_percent": 0.5}, "--rotary-percent"),
        ({"num_experts": 8}, "--num-experts"),
    ],
)
def test_what_llama_has_not(changes, flag):
    with pytest.raises(ValueError, match=f"no place for: .*{flag}"):
        hf_config(args(**changes), 20, torch.float32, Variant())


def test_flags_of_a_configuration():
    config = PHDLlamaConfig(
        **CONFIG.to_dict() | {"phd_variant": "PHD-SWA-2-16-inf", "model_type": "phd_llama"}
    )
    flags = megatron_flags(config)
    pairs = dict(zip(flags, flags[1:], strict=False))
    assert (pairs["--kv-channels"], pairs["--num-query-groups"]) == ("4", "2")
    assert pairs["--variant"] == "PHD-SWA-2-16-inf"
    assert "--untie-embeddings-and-output-weights" in flags


@pytest.mark.parametrize("copies", ["vanilla", "PHD-CSWA-3-16-32"])
@pytest.mark.parametrize(
    "pattern", ["longgen-sink.16.2.32", "longgen-block", "1sink-2full-1sink.8.1.2-2block-sparse", "full"]
)
def test_patterns_there_and_back(copies, pattern):
    """A training's variant -> config.json -> flags: the same layers."""
    variant = Variant(Copies.parse(copies), LayerPattern.parse(pattern))
    config = hf_config(args(num_layers=6), 20, torch.float32, variant)
    if variant == Variant():
        assert type(config) is LlamaConfig
        assert "--variant" not in megatron_flags(config)
        return
    assert config.rules == variant.layers(6)
    config = PHDLlamaConfig(**json.loads(config.to_json_string()))
    flags = megatron_flags(config)
    assert Variant.parse(flags[flags.index("--variant") + 1]).layers(6) == variant.layers(6)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act = gelu"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.5}}, "rope_theta': 10000.5"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 1e4}}, "rope_parameters"),
    ],
)
def test_what_megatron_has_not(changes, key):
    with pytest.raises(ValueError, match=key):
        megatron_flags(LlamaConfig(**CONFIG.to_dict() | changes))


def test_names_are_checked():
    shapes = expected_shapes(CONFIG)
    check_names(shapes, CONFIG)
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(ValueError, match=f"{name} is missing"):
        check_names({key: shape for key, shape in shapes.items() if key != name}, CONFIG)
    with pytest.raises(ValueError, match=rf"{name} is \[3, 3\], config.json tells \[10, 12\]"):
        check_names({**shapes, name: (3, 3)}, CONFIG)
    with pytest.raises(ValueError, match="visual.weight is not a Llama model's"):
        check_names({**shapes, "visual.weight": (3, 3)}, CONFIG)


def test_a_tensor_of_another_shape_than_the_arguments():
    tensors = checkpoint()
    tensors["decoder.layers.mlp.linear_fc1.weight"] = torch.zeros(2, 18, 12)
    with pytest.raises(ValueError, match="mlp.linear_fc1.weight"):
        dict(hf_weights(lambda name, layer: tensors[name] if layer is None else tensors[name][layer], CONFIG))
