"""The flags of pretrain_phd.py that make a run a PHD run or a LongGen run, and those that let a part of the
model train; Megatron's parser takes them from here.
"""

from dataclasses import dataclass

from phd.attention import BACKENDS
from phd.rules.pattern import LayerPattern
from phd.rules.rule import AttentionRule
from phd.rules.variant import COPY_EMBEDDINGS, Variant


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

    phd_consecutive_positions: bool = False
    """With --phd-naive: copy j of position m is at K * m + j for the rotary embedding, as in the plain form
    of Hidden Decoding (arXiv 2607.08186), rather than at m like the others of its token."""

    phd_copy_embedding: str = "none"
    """What tells hidden copies apart in the first layer: none (all copies enter as their token's embedding);
    vector (plus a learned vector for each hidden copy, zero at first); or table (an embedding table for each
    hidden copy, at first equal to the embedding)."""

    phd_copy_embedding_warmup_iters: int = 100
    """Where a copy embedding is added to a model in training (--override-phd-variant): over how many
    iterations its learning rate rises to that of the other parameters. 0 is at once."""

    phd_prune_last_layer: bool = True
    """Compute all copies in the last layer too, of which the last alone is used. The result is the same."""

    phd_attention_backend: str = "flash"
    """Kernel for the PHD attention: flash (fast path), or reference (dense and slow, for checks)."""

    attention_pattern: str = "full"
    """Which keys each layer keeps: full, sink or block-sparse in all layers; longgen-sink or longgen-block
    (LongGen's hybrids: the top and bottom thirds of the layers sparse); or a list of layers from the first
    on, 10sink-12full-10sink. sink.BLOCK.SINK.LOCAL keeps the first SINK and the most recent LOCAL blocks
    of BLOCK positions (64.1.32), block-sparse.BLOCK.STRIDE.LOCAL every STRIDE-th and the most recent LOCAL
    ones (64.64.1): longgen-sink.128.1.16. heads.2full.6sink is a layer whose first 2 of 8 key/value heads
    keep all keys."""

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
        if self.phd_consecutive_positions and not self.phd_naive:
            raise ValueError("--phd-consecutive-positions is of --phd-naive alone: leave it out")
        if self.phd_copy_embedding not in COPY_EMBEDDINGS:
            raise ValueError(
                f"--phd-copy-embedding must be one of {', '.join(COPY_EMBEDDINGS)}, got "
                f"{self.phd_copy_embedding!r}"
            )
        if self.phd_copy_embedding != "none" and self.phd_copies == 1:
            raise ValueError(
                f"--phd-copy-embedding {self.phd_copy_embedding} is of hidden copies, and --phd-copies 1 has "
                "none: leave it out, or take --phd-copies of at least 2"
            )
        if self.phd_copy_embedding_warmup_iters < 0:
            raise ValueError(
                "--phd-copy-embedding-warmup-iters must be at least 0 (0 = no warm-up), got "
                f"{self.phd_copy_embedding_warmup_iters}"
            )
        if self.phd_attention_backend not in BACKENDS:
            raise ValueError(
                f"--phd-attention-backend must be one of {', '.join(BACKENDS)}, got "
                f"{self.phd_attention_backend!r}: flash is the default, and flex is measured by "
                "benchmarks/gpu/attention.py; leave the flag out"
            )

        try:
            pattern = LayerPattern.parse(self.attention_pattern)
        except ValueError as error:
            raise ValueError(f"--attention-pattern: {error}") from error
        if self.phd_naive and pattern.sparse:
            raise ValueError("--attention-pattern does not run with --phd-naive: leave one out")

    @property
    def variant(self) -> Variant:
        """What the flags say of the model's attention."""
        return Variant.from_arguments(vars(self))

    @property
    def training_variant(self) -> Variant:
        """As training computes it."""
        return self.variant

    def layers(self, num_layers: int, heads: int | None = None) -> tuple[AttentionRule, ...]:
        """The rule of each layer.

        Args:
            heads: key/value heads of a layer, where they are known.

        Raises:
            ValueError: --attention-pattern is one of another depth, or of other heads.
        """
        try:
            # the flag's own pattern: a variant's pattern of full layers alone does not keep their number
            layers = LayerPattern.parse(self.attention_pattern).layers(num_layers, heads)
        except ValueError as error:
            raise ValueError(f"--attention-pattern: {error}") from error
        copies = self.variant.copies
        return tuple(AttentionRule(copies, keys) for keys in layers)


@dataclass(kw_only=True)
class PartialTrainingConfig:
    """Training a part of a model's parameters, with a part of its attention, as LongLoRA does (arXiv
    2309.12307).
    """

    train_only: str | None = None
    """Words with commas between, such as embedding,norm: parameters whose name has one of them in it train,
    all others stay as they are. By default all train; with --lora-rank lora, which is the adapters' name."""

    lora_rank: int = 0
    """LoRA: adapters of this rank on the query, key, value and output projection of every attention layer.
    They join a trained model (--pretrained-checkpoint), and phd export merges them into its weights. 0 turns
    it off."""

    lora_alpha: int | None = None
    """With --lora-rank: adapters are multiplied by this over the rank; 16 by default."""

    s2_groups: int = 0
    """Train with LongLoRA's shifted sparse attention: in half of the key/value heads a token sees its own
    group alone, one of so many in --seq-length; in the other half groups begin half a group earlier.
    Validation and the exported model have full attention. The paper's number is 4; 0 turns it off."""

    def __post_init__(self) -> None:
        if self.lora_rank:
            self.lora_alpha = 16 if self.lora_alpha is None else self.lora_alpha
            self.train_only = "lora" if self.train_only is None else self.train_only
        elif self.lora_alpha is not None:
            raise ValueError("--lora-alpha is of --lora-rank: pass it too, or leave this out")
        if self.lora_rank and "lora" not in self.trained_words:
            raise ValueError(
                f"--train-only {self.train_only} does not train the adapters of --lora-rank: add lora to it"
            )
        if self.train_only is not None and not all(self.trained_words):
            raise ValueError(
                f"--train-only {self.train_only!r}: write words with commas between, such as embedding,norm"
            )

    @property
    def trained_words(self) -> tuple[str, ...]:
        """Of --train-only; none where all parameters train."""
        return () if self.train_only is None else tuple(map(str.strip, self.train_only.split(",")))

    def trains(self, name: str) -> bool:
        """Whether a parameter of this name trains."""
        return not self.trained_words or any(word in name for word in self.trained_words)
