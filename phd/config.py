"""What makes a run a PHD run: copies, window, chunk. The flags of pretrain_phd.py are generated from here."""

from dataclasses import dataclass
from typing import Literal

from phd.attention import BACKENDS


@dataclass(kw_only=True)
class PHDConfig:
    """PHD-Transformer (arXiv 2504.14992): every token is repeated K times in one forward pass; only the
    original copy leaves a KV cache, and the last copy predicts the next token.
    """

    phd_copies: int = 1
    """K: how many times each token passes through the model. 1 is the vanilla GPT."""

    phd_window: int = 16
    """W: a hidden copy sees the hidden copies of the W most recent positions, its own included
    (PHD-SWA). 1 is plain PHD."""

    phd_chunk: int = 32
    """C: hidden copies see each other only inside chunks of C positions (PHD-CSWA). 0 means no chunks
    (PHD-SWA). With --phd-window 1 it has no effect."""

    phd_naive: bool = False
    """The paper's baseline instead of PHD: plain causal attention over all K copies, every copy cached.
    --phd-window and --phd-chunk have no effect."""

    phd_prune_last_layer: bool = True
    """Compute all copies in the last layer too, of which the last alone is used. The result is the same."""

    phd_attention_backend: Literal["auto", "flash", "flex", "reference"] = "auto"
    """Kernel for the PHD attention: flash (fast path), flex (torch's FlexAttention, GPUs only), reference
    (dense and slow, for checks), or auto (flash)."""

    def __post_init__(self) -> None:
        if self.phd_copies < 1:
            raise ValueError(f"--phd-copies must be at least 1 (1 = vanilla), got {self.phd_copies}")
        if self.phd_window < 1:
            raise ValueError(
                f"--phd-window must be at least 1 (1 = plain PHD, the position itself), got {self.phd_window}"
            )
        if self.phd_chunk < 0:
            raise ValueError(
                f"--phd-chunk must be positive, or 0 for no chunks (PHD-SWA), got {self.phd_chunk}"
            )
        if 0 < self.phd_chunk < self.phd_window:
            raise ValueError(
                f"--phd-window {self.phd_window} reaches beyond --phd-chunk {self.phd_chunk}: "
                f"use --phd-window {self.phd_chunk} or less, or --phd-chunk 0 for no chunks"
            )
        if self.phd_naive and self.phd_copies == 1:
            raise ValueError("--phd-naive repeats tokens and needs --phd-copies of at least 2")
        if self.phd_naive and self.phd_attention_backend == "flex":
            raise ValueError(
                "--phd-attention-backend flex has no naive repetition: use flash with --phd-naive"
            )
        if self.phd_attention_backend not in BACKENDS:
            raise ValueError(
                f"--phd-attention-backend must be one of {', '.join(BACKENDS)}, "
                f"got {self.phd_attention_backend!r}"
            )

    @property
    def chunk(self) -> int | None:
        """C for the attention functions: None where there are no chunks."""
        return self.phd_chunk or None

    @property
    def variant(self) -> str:
        """The paper's name of the variant, model-type-K-W-C: ``PHD-CSWA-2-16-32``, ``PHD-SWA-5-16-inf``."""
        if self.phd_copies == 1:
            return "vanilla"
        if self.phd_naive:
            return f"naive-{self.phd_copies}"
        if self.phd_window == 1:
            return f"PHD-{self.phd_copies}"
        if self.phd_chunk:
            return f"PHD-CSWA-{self.phd_copies}-{self.phd_window}-{self.phd_chunk}"
        return f"PHD-SWA-{self.phd_copies}-{self.phd_window}-inf"
