"""Configuration of a PHD-Transformer for transformers: Llama's, and K, W, C."""

from transformers import LlamaConfig


class PHDLlamaConfig(LlamaConfig):
    """LlamaConfig plus what makes a model a PHD-Transformer (arXiv 2504.14992); the weights are Llama's.

    Args:
        phd_copies: K, how many times each token passes through the model. 1 is Llama.
        phd_window: W, a hidden copy sees the hidden copies of the W most recent positions, its own
            included. 1 is plain PHD.
        phd_chunk: C, only inside chunks of C positions (PHD-CSWA); None for no chunks (PHD-SWA).

    Raises:
        ValueError: one of them is out of range.
    """

    model_type = "phd_llama"

    phd_copies: int = 1
    phd_window: int = 16
    phd_chunk: int | None = 32

    def validate_architecture(self) -> None:
        super().validate_architecture()
        if self.phd_copies < 1:
            raise ValueError(f"phd_copies must be at least 1, got {self.phd_copies}")
        if self.phd_window < 1:
            raise ValueError(f"phd_window must be at least 1, got {self.phd_window}")
        if self.phd_chunk is not None and self.phd_chunk < self.phd_window:
            raise ValueError(
                f"phd_chunk must be None or at least phd_window ({self.phd_window}), got {self.phd_chunk}"
            )

    @property
    def reach(self) -> int:
        """How many positions back the hidden copies of a position depend on others', through all layers."""
        reach = self.num_hidden_layers * (self.phd_window - 1)
        return reach if self.phd_chunk is None else min(reach, self.phd_chunk - 1)
