"""Names, shapes and settings of Megatron's GPT and of Hugging Face's Llama, both ways. Imports neither.

Legend: v vocabulary, h hidden size, f FFN hidden size, a query heads, g key/value heads, d head dimension.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from phd.hf.configuration import PHDLlamaConfig
from phd.rules.costs import Shape
from phd.rules.variant import Variant, copy_parameter

Read = Callable[[str, int | None], Tensor]
"""(name, layer) -> tensor, as ``CheckpointTensors.read``"""

LAYERS = "decoder.layers."
# Megatron's name in a checkpoint, where layers are stacked -> Llama's name in a layer.
_NORMS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
}
PROJ = "self_attention.linear_proj.weight"
_PLAIN = {
    PROJ: "self_attn.o_proj.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}
QKV, _QKV_NAMES = "self_attention.linear_qkv.weight", [f"self_attn.{x}_proj.weight" for x in "qkv"]
_FC1, _FC1_NAMES = "mlp.linear_fc1.weight", ["mlp.gate_proj.weight", "mlp.up_proj.weight"]
_EMBEDDING, _NORM, _OUTPUT = (
    "embedding.word_embeddings.weight",
    "decoder.final_layernorm.weight",
    "output_layer.weight",
)

_NOT_LLAMA: tuple[tuple[str, Callable[[Namespace], bool]], ...] = (
    ("--normalization other than RMSNorm", lambda a: a.normalization != "RMSNorm"),
    ("an MLP without --swiglu", lambda a: not a.swiglu),
    ("biases (no --disable-bias-linear)", lambda a: a.add_bias_linear),
    ("--add-qkv-bias", lambda a: a.add_qkv_bias),
    ("--qk-layernorm", lambda a: a.qk_layernorm),
    ("--qk-l2-norm", lambda a: a.qk_l2_norm),
    ("--apply-layernorm-1p", lambda a: a.layernorm_zero_centered_gamma),
    ("--apply-residual-connection-post-layernorm", lambda a: a.apply_residual_connection_post_layernorm),
    ("--glu-linear-offset", lambda a: a.glu_linear_offset != 0),
    ("--activation-func-clamp-value", lambda a: a.activation_func_clamp_value is not None),
    ("--position-embedding-type other than rope", lambda a: a.position_embedding_type != "rope"),
    ("--rotary-percent other than 1", lambda a: a.rotary_percent != 1.0),
    ("--rotary-interleaved", lambda a: a.rotary_interleaved),
    (
        "--rotary-seq-len-interpolation-factor with --use-rope-scaling",
        lambda a: a.rotary_seq_len_interpolation_factor not in (None, 1) and a.use_rope_scaling,
    ),
    ("--no-rope-freq", lambda a: bool(a.no_rope_freq)),
    ("--num-experts", lambda a: a.num_experts is not None),
    ("--multi-latent-attention", lambda a: a.multi_latent_attention),
    ("--mtp-num-layers", lambda a: bool(a.mtp_num_layers)),
    ("--window-size", lambda a: a.window_size is not None),
    ("--softmax-type other than vanilla", lambda a: a.softmax_type != "vanilla"),
    ("--attention-output-gate", lambda a: a.attention_output_gate),
)
"""What neither Llama nor PHDLlama has: flag, and whether arguments ask for it."""


def hf_config(args: Namespace, vocab_size: int, dtype: torch.dtype, variant: Variant) -> LlamaConfig:
    """Configuration of the model that was trained with ``args``: Llama's own for K = 1 and full attention.

    Args:
        variant: as which it was trained.

    Raises:
        ValueError: the model has a part that Llama has not; names the flag.
    """
    refused = [flag for flag, refuses in _NOT_LLAMA if refuses(args)]
    if refused:
        raise ValueError("a Llama model has no place for: " + "; ".join(refused))
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": args.hidden_size,
        "intermediate_size": args.ffn_hidden_size,
        "num_hidden_layers": args.num_layers,
        "num_attention_heads": args.num_attention_heads,
        "num_key_value_heads": args.num_query_groups
        if args.group_query_attention
        else args.num_attention_heads,
        "head_dim": args.kv_channels,
        # what E2-LLM extended, which is read whole at scale 1
        "max_position_embeddings": getattr(args, "rope_context", None) or args.max_position_embeddings,
        "rms_norm_eps": args.layernorm_epsilon,
        "rope_parameters": _rope_parameters(args),
        "initializer_range": args.init_method_std,
        "tie_word_embeddings": not args.untie_embeddings_and_output_weights,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": str(dtype).removeprefix("torch."),
    }
    variant = variant.outside_training(args.num_layers)
    if variant == Variant():
        return LlamaConfig(**settings, architectures=["LlamaForCausalLM"])
    return PHDLlamaConfig(
        **settings,
        architectures=["PHDLlamaForCausalLM"],
        phd_variant=str(variant),
    )


def attention_shape(config: Any) -> Shape:
    """Of a LlamaConfig, for the costs of its attention and the bytes of its cache: MLPs count nothing."""
    return Shape(
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_query_groups=config.num_key_value_heads,
        kv_channels=config.head_dim,
        vocab_size=config.vocab_size,
        mlp_products=[0] * config.num_hidden_layers,
    )


def _rope_parameters(args: Namespace) -> dict[str, Any]:
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": float(args.rotary_base)}
    if args.use_rope_scaling:  # Megatron has Llama 3.1's other numbers in its code
        parameters |= {
            "rope_type": "llama3",
            "factor": float(args.rope_scaling_factor),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    factor = args.rotary_seq_len_interpolation_factor
    if factor not in (None, 1):
        parameters |= {"rope_type": "linear", "factor": float(factor)}
    return parameters


def megatron_flags(config: LlamaConfig) -> list[str]:
    """The flags of pretrain_phd.py for the model that a Hugging Face configuration describes.

    Raises:
        ValueError: the configuration asks for what Megatron's GPT cannot do, or is not Llama's; names it.
    """
    known = ("llama", PHDLlamaConfig.model_type)
    if config.model_type not in known:
        raise ValueError(f"model_type is {config.model_type!r}: phd imports {' and '.join(known)}")
    rope = dict(config.rope_parameters or {})
    kind = rope.get("rope_type", "default")
    refused = {
        "attention_bias": bool(config.attention_bias),
        "mlp_bias": bool(config.mlp_bias),
        "hidden_act": config.hidden_act != "silu",
        # --rotary-base and --rotary-seq-len-interpolation-factor are whole numbers
        "rope_parameters": kind not in ("default", "llama3", "linear")
        or rope.get("rope_theta", 10000.0) % 1 != 0
        or (kind == "linear" and rope.get("factor", 1.0) % 1 != 0),
    }
    llama3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    if kind == "llama3" and any(rope.get(name) != value for name, value in llama3.items()):
        refused["rope_parameters"] = True
    if named := [f"{name} = {getattr(config, name)}" for name, is_refused in refused.items() if is_refused]:
        raise ValueError(f"config.json: Megatron's GPT as phd trains it cannot do {'; '.join(named)}")
    flags: list[Any] = [
        *("--num-layers", config.num_hidden_layers, "--hidden-size", config.hidden_size),
        *("--ffn-hidden-size", config.intermediate_size, "--num-attention-heads", config.num_attention_heads),
        *("--group-query-attention", "--num-query-groups", config.num_key_value_heads),
        *("--kv-channels", config.head_dim, "--seq-length", config.max_position_embeddings),
        *("--max-position-embeddings", config.max_position_embeddings, "--norm-epsilon", config.rms_norm_eps),
        *("--init-method-std", config.initializer_range),
        *("--swiglu", "--normalization", "RMSNorm", "--disable-bias-linear"),
        *("--position-embedding-type", "rope", "--rotary-base", int(rope.get("rope_theta", 10000.0))),
        *("--attention-dropout", 0, "--hidden-dropout", 0),
    ]
    if kind == "llama3":
        flags += ["--use-rope-scaling", "--rope-scaling-factor", rope["factor"]]
    if kind == "linear":
        flags += ["--rotary-seq-len-interpolation-factor", int(rope["factor"])]
    if not config.tie_word_embeddings:
        flags.append("--untie-embeddings-and-output-weights")
    if isinstance(config, PHDLlamaConfig):
        flags += ["--variant", config.phd_variant]
        if config.copies.consecutive:
            flags.append("--no-rope-fusion")  # the fused kernel has one position for all copies
    return [str(flag) for flag in flags]


def _copy_embedding(config: LlamaConfig) -> dict[str, str]:
    """Names of the copy embedding's tensors: Megatron's -> ours."""
    if not isinstance(config, PHDLlamaConfig) or config.variant.embedding == "none":
        return {}
    embedding = config.variant.embedding
    ours = {"vector": "model.copy_embedding.vectors.{}", "table": "model.copy_embedding.tables.{}.weight"}
    hidden = range(config.copies.hidden)
    return {copy_parameter(embedding, index + 1): ours[embedding].format(index) for index in hidden}


def hf_weights(read: Read, config: LlamaConfig) -> Iterator[tuple[str, Tensor]]:
    """Llama's tensors and a copy embedding's by name, a layer's after another's, read from a checkpoint of
    Megatron as they come.

    Raises:
        ValueError: a tensor is missing or of another shape than the configuration tells.
    """
    # Megatron pads the vocabulary to a multiple of --make-vocab-size-divisible-by times TP.
    embedding = read(_EMBEDDING, None)[: config.vocab_size]
    yield "model.embed_tokens.weight", _shaped(embedding, _EMBEDDING, config.vocab_size, config.hidden_size)
    shapes = expected_shapes(config)
    for ours, theirs in _copy_embedding(config).items():
        weight, shape = read(ours, None), shapes[theirs]
        if len(shape) == 2:  # a table, padded likewise
            weight = weight[: config.vocab_size]
        yield theirs, _shaped(weight, ours, *shape)
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        for ours, theirs in {**_NORMS, **_PLAIN}.items():
            yield prefix + theirs, read(LAYERS + ours, layer)
        qkv = split_qkv(read(LAYERS + QKV, layer), config)
        yield from ((prefix + name, x) for name, x in zip(_QKV_NAMES, qkv, strict=True))
        fc1 = _shaped(
            read(LAYERS + _FC1, layer), _FC1, 2 * config.intermediate_size, config.hidden_size
        ).chunk(2)
        yield from ((prefix + name, x) for name, x in zip(_FC1_NAMES, fc1, strict=True))
    yield "model.norm.weight", read(_NORM, None)
    if not config.tie_word_embeddings:
        output = read(_OUTPUT, None)[: config.vocab_size]
        yield "lm_head.weight", _shaped(output, _OUTPUT, config.vocab_size, config.hidden_size)


def megatron_weight(name: str, get: Callable[[str], Tensor], config: LlamaConfig, rows: int) -> Tensor:
    """The tensor of a parameter of a Megatron GPT on one process, from Llama's and a copy embedding's.

    Args:
        name: as ``model.named_parameters()`` gives it.
        get: Llama's name -> tensor.
        rows: of the parameter: the vocabulary is padded to it with zeros.

    Raises:
        ValueError: a parameter that no Llama has.
    """
    whole = {
        **{_EMBEDDING: "model.embed_tokens.weight", _OUTPUT: "lm_head.weight", _NORM: "model.norm.weight"},
        **_copy_embedding(config),
    }
    if name in whole:
        weight = get(whole[name])
        return torch.cat([weight, weight.new_zeros(rows - len(weight), *weight.shape[1:])])
    layer, _, rest = name.removeprefix(LAYERS).partition(".")
    prefix = f"model.layers.{layer}."
    if rest == QKV:
        query, key, value = (get(prefix + theirs) for theirs in _QKV_NAMES)
        return join_qkv(query, key, value, config)
    if rest == _FC1:
        return torch.cat([get(prefix + theirs) for theirs in _FC1_NAMES])
    # the norms as parameters of their own, where there is no Transformer Engine to fuse them
    norms = {"input_layernorm.weight": 0, "pre_mlp_layernorm.weight": 1}
    theirs = list(_NORMS.values())[norms[rest]] if rest in norms else {**_NORMS, **_PLAIN}.get(rest)
    if theirs is None:
        raise ValueError(f"{name}: a Llama model has no such weight")
    return get(prefix + theirs)


def split_qkv(weight: Tensor, config: LlamaConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Megatron's rows, for each group its a/g query heads, a key and a value head -> q, k, v."""
    heads, groups, dim = _heads(config)
    weight = _shaped(weight, QKV, (heads + 2 * groups) * dim, config.hidden_size)
    # [g, a/g + 2, d, h]
    grouped = weight.unflatten(0, (groups, heads // groups + 2, dim))
    return grouped[:, :-2].flatten(0, 2), grouped[:, -2].flatten(0, 1), grouped[:, -1].flatten(0, 1)


def join_qkv(query: Tensor, key: Tensor, value: Tensor, config: LlamaConfig) -> Tensor:
    """Inverse of ``split_qkv``."""
    heads, groups, dim = _heads(config)
    # [g, heads of a group, d, h]
    parts = (
        query.unflatten(0, (groups, heads // groups, dim)),
        key.unflatten(0, (groups, 1, dim)),
        value.unflatten(0, (groups, 1, dim)),
    )
    return torch.cat(parts, dim=1).flatten(0, 2)


def check_names(found: Mapping[str, tuple[int, ...]], config: LlamaConfig) -> None:
    """Compare names and shapes of a folder's tensors with what its configuration tells.

    Raises:
        ValueError: a tensor is missing, unknown or of a wrong shape; names it.
    """
    expected = expected_shapes(config)
    for name, shape in expected.items():
        if name not in found:
            raise ValueError(f"the tensor {name} is missing")
        if tuple(found[name]) != shape:
            raise ValueError(f"the tensor {name} is {list(found[name])}, config.json tells {list(shape)}")
    ignored = ("rotary_emb.inv_freq", *(("lm_head.weight",) if config.tie_word_embeddings else ()))
    if unknown := [name for name in found if name not in expected and not name.endswith(ignored)]:
        raise ValueError(f"the tensor {unknown[0]} is not a Llama model's")


def expected_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a Llama model, and of a copy embedding."""
    heads, groups, dim = _heads(config)
    hidden, ffn, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    layer = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (heads * dim, hidden),
        "self_attn.k_proj.weight": (groups * dim, hidden),
        "self_attn.v_proj.weight": (groups * dim, hidden),
        "self_attn.o_proj.weight": (hidden, heads * dim),
        "mlp.gate_proj.weight": (ffn, hidden),
        "mlp.up_proj.weight": (ffn, hidden),
        "mlp.down_proj.weight": (hidden, ffn),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for name in _copy_embedding(config).values():
        shapes[name] = (vocab, hidden) if ".tables." in name else (hidden,)
    for index in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def _heads(config: LlamaConfig) -> tuple[int, int, int]:
    assert config.num_key_value_heads is not None and config.head_dim is not None  # set by the config itself
    return config.num_attention_heads, config.num_key_value_heads, config.head_dim


def _shaped(weight: Tensor, name: str, *shape: int) -> Tensor:
    if tuple(weight.shape) != shape:
        raise ValueError(f"the tensor {name} is {list(weight.shape)}, the arguments tell {list(shape)}")
    return weight
