"""The differences between a checkpoint's model and a run's: shapes, what is computed with them, the
tokenizer, and the variant; each by the name of its flag.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

from phd.config import PHDConfig
from phd.rules.variant import Variant
from phd.run.arguments import flag
from phd.run.files import sha256

type Arguments = dict[str, Any]

SHAPES = (
    *(
        "num_layers",
        "hidden_size",
        "ffn_hidden_size",
        "num_attention_heads",
        "num_query_groups",
        "kv_channels",
    ),
    *("add_bias_linear", "add_qkv_bias", "untie_embeddings_and_output_weights", "qk_layernorm"),
    *("normalization", "position_embedding_type", "add_position_embedding", "attention_output_gate"),
    *("num_experts", "moe_ffn_hidden_size", "moe_layer_freq", "moe_shared_expert_intermediate_size"),
    *("moe_shared_expert_gate", "moe_latent_size", "moe_router_enable_expert_bias", "softmax_type"),
    *("experimental_attention_variant", "linear_attention_freq", "linear_conv_kernel_dim"),
    *("linear_key_head_dim", "linear_value_head_dim", "linear_num_key_heads", "linear_num_value_heads"),
    *(
        "multi_latent_attention",
        "q_lora_rank",
        "kv_lora_rank",
        "qk_head_dim",
        "qk_pos_emb_head_dim",
        "v_head_dim",
    ),
    "hybrid_layer_pattern",
)
"""Arguments that decide the names and shapes of the weights."""

ADAPTERS = ("lora_rank", "lora_alpha")
"""Likewise; but a run with adapters begins from weights without."""

FUNCTIONS = (
    *("swiglu", "squared_relu", "quick_geglu", "openai_gelu", "onnx_safe", "glu_linear_offset"),
    *("activation_func_clamp_value", "layernorm_epsilon", "layernorm_zero_centered_gamma", "qk_l2_norm"),
    *("apply_residual_connection_post_layernorm", "rotary_percent", "rotary_interleaved", "no_rope_freq"),
    *("window_size", "window_attn_skip_freq", "moe_router_topk", "moe_router_pre_softmax"),
    *("moe_router_score_function", "moe_router_topk_scaling_factor", "moe_router_num_groups"),
    *(
        "moe_router_group_topk",
        "moe_apply_probs_on_input",
        "use_mup",
        "mup_embedding_mult",
        "mup_output_mult",
    ),
    *("mup_base_hidden_size", "mup_base_head_dim", "mup_width_mult", "mup_attn_scale_power"),
)
"""Arguments that decide what is computed with the weights, which would load and then compute something
else."""

POSITIONS = (
    *("rotary_base", "use_rope_scaling", "rope_scaling_factor", "rotary_seq_len_interpolation_factor"),
    *("rotary_scaling_factor", "yarn_original_max_position_embeddings", "yarn_beta_fast", "yarn_beta_slow"),
    *("mscale", "mscale_all_dim"),
)
"""Likewise; but a longer context begins with other ones, from first weights."""

TOKENIZER = (
    *("tokenizer_type", "tiktoken_pattern", "tiktoken_num_special_tokens", "tokenizer_sentencepiece_legacy"),
    *("tokenizer_hf_no_include_special_tokens", "special_tokens", "vocab_extra_ids", "null_tokenizer_eod_id"),
)
"""Arguments that decide what a token id means, beside the tokenizer's files."""

# Where Megatron's name of an argument is not its flag's.
FLAGS = {
    "layernorm_epsilon": "--norm-epsilon",
    "layernorm_zero_centered_gamma": "--apply-layernorm-1p",
    "add_bias_linear": "--disable-bias-linear",
    "add_position_embedding": "--no-position-embedding",
    "special_tokens": "--tokenizer-special-tokens",
}
OFF = ("add_bias_linear", "add_position_embedding")
"""Those whose flag makes them false."""


def other_model(was: Arguments, now: Arguments, names: list[str]) -> list[str]:
    """Differences in the arguments of these names, where both have them."""
    both = [name for name in names if name in was and name in now]
    return [difference(name, was[name], now[name]) for name in both if was[name] != now[name]]


def other_tokenizer(was: Arguments, now: Arguments) -> list[str]:
    """Differences in what a token id means. A tokenizer that lies elsewhere is the same by its content;
    where the checkpoint does not tell that, nor the path that it tells, by its name.
    """
    names = [name for name in TOKENIZER if name in was and was[name] != now[name]]
    if (
        now["tokenizer_type"] == was["tokenizer_type"] == "NullTokenizer"
        and was["vocab_size"] != now["vocab_size"]
    ):
        names.append("vocab_size")
    different = [difference(name, was[name], now[name]) for name in names]
    paths = [was["tokenizer_model"], now["tokenizer_model"]]
    before, ours = was.get("tokenizer_sha256"), now["tokenizer_sha256"]
    if before is None and paths[0] != paths[1] and (file := tokenizer_file(paths[0])):
        before = sha256(file)
    if before and ours:
        if before != ours:
            sums = f" (sha256 {before[:12]} and {ours[:12]})"
            different.append(difference("tokenizer_model", *paths) + sums)
    elif _name(paths[0]) != _name(paths[1]):
        different.append(difference("tokenizer_model", *paths))
    return different


def _name(path: str | None) -> str:
    return Path(path).name if path else ""


def tokenizer_file(path: str | None) -> Path | None:
    """The file that is a tokenizer, also of a folder of Hugging Face's."""
    for name in ("", "tokenizer.json", "tokenizer.model") if path else ():
        if (file := Path(str(path), name)).is_file():
            return file
    return None


def other_variant(saved: Namespace, config: PHDConfig) -> tuple[str, str] | None:
    """The variants of a checkpoint and of ``config``, where they differ."""
    trained, ours = Variant.from_arguments(vars(saved)), config.variant
    # a pattern may be spelled in two ways
    layers = trained.layers(saved.num_layers) == config.layers(saved.num_layers)
    same = layers and trained.embedding == ours.embedding
    return None if same else (str(trained), str(ours))


def lost_embedding(saved: Namespace, config: PHDConfig) -> list[str]:
    """What a checkpoint has learned that tells its copies apart, and the model of ``config`` would drop."""
    trained, ours = Variant.from_arguments(vars(saved)), config.variant
    if trained.embedding == "none":
        return []
    if trained.embedding == ours.embedding and trained.copies.count <= ours.copies.count:
        return []
    return [
        f"--phd-copy-embedding {trained.embedding} with --phd-copies {trained.copies.count}, and this run, "
        f"{ours.embedding} with {ours.copies.count}, would drop what it has learned"
    ]


def difference(name: str, was: Any, now: Any) -> str:
    """``--hidden-size 32, this run 64`` or ``no --swiglu, this run has``."""
    if isinstance(was, bool) or isinstance(now, bool):
        has = bool(was) != (name in OFF)
        return f"{_flag(name)}, this run has not" if has else f"no {_flag(name)}, this run has"
    if was is None:
        return f"no {_flag(name)}, this run {_words(now)}"
    return f"{_flag(name)} {_words(was)}, this run {'has none' if now is None else _words(now)}"


def change(name: str, was: Arguments, now: Arguments) -> str:
    return f"{_flag(name)} {_words(was[name])}, now {_words(now[name])}"


def _flag(name: str) -> str:
    return FLAGS.get(name, flag(name))


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
