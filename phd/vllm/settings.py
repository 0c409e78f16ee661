"""The hook by which vLLM's settings follow a PHD model, and are refused where they cannot."""

from typing import Any

import torch
from vllm.logger import init_logger
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform

from phd.hf.configuration import PHDLlamaConfig
from phd.vllm.refusals import Asked, block_size, check_asked

logger = init_logger(f"vllm.{__name__}")  # vLLM prints what is below its own name

ALL_POSITIONS = "phd_all_positions"
"""Key of --additional-config: run the hidden copies of every token, for log-probabilities of prompts. Without
it those are NaN."""
_CPU = (32, 128)
_GPU = (16, 16)
"""Multiple that the kernels' blocks must be, and vLLM's default."""


def all_positions(vllm_config: Any) -> bool:
    """Whether the hidden copies of every token run.

    Raises:
        ValueError: the setting is neither true nor false.
    """
    extra = vllm_config.additional_config
    value = extra.get(ALL_POSITIONS, False) if isinstance(extra, dict) else False
    if not isinstance(value, bool):
        raise ValueError(f"--additional-config: {ALL_POSITIONS} must be true or false, got {value!r}")
    return value


class PHDSettings(VerifyAndUpdateConfig):
    """Called once, with all that vLLM was asked for, before anything is loaded."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Choose the block size and the dtype.

        Raises:
            ValueError: one line with flag and remedy, of ``phd.vllm.refusals``.
        """
        model, cache = vllm_config.model_config, vllm_config.cache_config
        parallel, config = vllm_config.parallel_config, model.hf_config
        assert isinstance(config, PHDLlamaConfig)
        variant = config.variant
        asked = Asked(
            tensor_parallel_size=parallel.tensor_parallel_size,
            pipeline_parallel_size=parallel.pipeline_parallel_size,
            context_parallel_size=max(
                parallel.decode_context_parallel_size, parallel.prefill_context_parallel_size
            ),
            enable_lora=vllm_config.lora_config is not None,
            speculative_config=vllm_config.speculative_config is not None,
            kv_transfer_config=vllm_config.kv_transfer_config is not None
            or cache.kv_offloading_size is not None,
            kv_cache_dtype=cache.cache_dtype,
            enable_dbo=parallel.enable_dbo,
            pooling=model.runner_type != "generate",
            enable_prefix_caching=cache.enable_prefix_caching,
            prefix_match_unit=cache.prefix_match_unit,
            block_size=cache.block_size if cache.user_specified_block_size else None,
        )
        check_asked(variant, asked, config.num_attention_heads, model.get_total_num_kv_heads())
        if hasattr(config, "dual_chunk_attention_config"):
            raise ValueError("config.json: dual_chunk_attention_config: not with PHD: delete the field")
        if not variant.copies.hidden:
            return
        all_positions(vllm_config)
        cache.block_size = block_size(variant, asked, *(_CPU if current_platform.is_cpu() else _GPU))
        cache.user_specified_block_size = True  # or vLLM would choose again
        model.enforce_eager = True  # graphs and compiled layers count on one number of rows a token
        if current_platform.is_cpu():
            if model.dtype != torch.float32:
                logger.warning("%s is served in float32 on a CPU, not in %s.", variant, model.dtype)
                model.dtype = torch.float32
            return
        _take_flash_attention(vllm_config)


def _take_flash_attention(vllm_config: Any) -> None:
    """The one of vLLM's kernels for GPUs that is called for hidden copies: it returns a log-sum-exp."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    attention = vllm_config.attention_config
    if attention.backend not in (None, AttentionBackendEnum.FLASH_ATTN):
        raise ValueError(
            f"--attention-backend {attention.backend.name}: hidden copies need its log-sum-exp: "
            "take FLASH_ATTN, or leave it out"
        )
    attention.backend = AttentionBackendEnum.FLASH_ATTN
