"""What makes a run a PHD run or a LongGen run: copies, window, chunk, and the pattern of each layer. The
flags of pretrain_phd.py are generated from here.
"""

from argparse import Namespace
from dataclasses import dataclass
from typing import Literal

from phd.attention import BACKENDS
from phd.attention.pattern import LayerPatterns, parse_patterns, pattern_kinds


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

    attention_pattern: str = "full"
    """Which keys each layer keeps: full (all layers), longgen-sink or longgen-block (LongGen's hybrids: the
    top and bottom thirds of the layers sparse), or a list such as 10*sink,12*full,10*block-sparse."""

    attention_pattern_block: int = 64
    """Positions in a block of a sparse layer, counted from the start of the document."""

    attention_pattern_sink_blocks: int = 1
    """First blocks that a sink layer keeps."""

    attention_pattern_local_blocks: int = 32
    """Most recent blocks that a sink layer keeps, the query's own included."""

    attention_pattern_stride: int = 64
    """A block-sparse layer keeps every so many blocks one, from the first on."""

    attention_pattern_stride_local_blocks: int = 1
    """Most recent blocks that a block-sparse layer keeps, the query's own included."""

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

        if self.phd_naive and self.sparse:
            raise ValueError("--attention-pattern does not run with --phd-naive: leave one out")
        for field in ("block", "sink_blocks", "local_blocks", "stride", "stride_local_blocks"):
            least = 0 if field == "sink_blocks" else 1
            if (value := getattr(self, f"attention_pattern_{field}")) < least:
                flag = f"--attention-pattern-{field.replace('_', '-')}"
                raise ValueError(f"{flag} must be at least {least}, got {value}")

    @property
    def chunk(self) -> int | None:
        """C for the attention functions: None where there are no chunks."""
        return self.phd_chunk or None

    @property
    def sparse(self) -> bool:
        """Whether some layer is not full attention."""
        kinds = {part.rpartition("*")[2].strip() for part in self.attention_pattern.split(",")}
        return kinds != {"full"}

    def patterns(self, num_layers: int) -> LayerPatterns:
        """The pattern of each layer; None where it is full attention.

        Raises:
            ValueError: --attention-pattern is not a pattern, or not one of so many layers.
        """
        kinds = pattern_kinds(
            self.attention_pattern_block,
            self.attention_pattern_sink_blocks,
            self.attention_pattern_local_blocks,
            self.attention_pattern_stride,
            self.attention_pattern_stride_local_blocks,
        )
        try:
            return parse_patterns(self.attention_pattern, num_layers, kinds)
        except ValueError as error:
            raise ValueError(f"--attention-pattern: {error}") from error

    @property
    def variant(self) -> str:
        """The paper's name of the variant, model-type-K-W-C: ``PHD-CSWA-2-16-32``, ``PHD-SWA-5-16-inf``; and
        the layers' pattern, where not all are full: ``longgen-sink``, ``PHD-CSWA-2-16-32+longgen-sink``.
        """
        if not self.sparse:
            return self._copies_variant
        pattern = self.attention_pattern.replace("*", "").replace(",", "-")
        return pattern if self.phd_copies == 1 else f"{self._copies_variant}+{pattern}"

    @property
    def _copies_variant(self) -> str:
        if self.phd_copies == 1:
            return "vanilla"
        if self.phd_naive:
            return f"naive-{self.phd_copies}"
        if self.phd_window == 1:
            return f"PHD-{self.phd_copies}"
        if self.phd_chunk:
            return f"PHD-CSWA-{self.phd_copies}-{self.phd_window}-{self.phd_chunk}"
        return f"PHD-SWA-{self.phd_copies}-{self.phd_window}-inf"


VARIANT_FIELDS = (
    *("phd_copies", "phd_window", "phd_chunk", "phd_naive", "attention_pattern", "attention_pattern_block"),
    *("attention_pattern_sink_blocks", "attention_pattern_local_blocks", "attention_pattern_stride"),
    "attention_pattern_stride_local_blocks",
)
"""What tells variants apart, as the arguments of a run or in a checkpoint."""


def trained_variant(trained: Namespace) -> PHDConfig:
    """The variant that a checkpoint's arguments tell; vanilla where it is Megatron's own."""
    return PHDConfig(**{name: getattr(trained, name) for name in VARIANT_FIELDS if hasattr(trained, name)})
