"""Megatron's GPTModel with K copies of every token as batch rows: repeat on the way in, last one out. And
with rotary positions that come with the batch, also where K is 1.
"""

from typing import Any

from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from phd.megatron.rotary import angles_of_table, consecutive_positions, rotary_angles


class PHDModel(GPTModel):
    """GPTModel whose decoder runs on K copies of each token (K = ``config.phd_copies``).

    Names and shapes of the weights are the vanilla model's; ``copy_embedding`` comes on top where copies have
    one (``config.phd_copy_embedding``). Shapes: s sequence length (divided by tensor-parallel size under
    sequence parallelism), b micro batch size, h hidden size.
    """

    _rotary_positions: Tensor | None = None
    """Of the forward pass that runs: Megatron hands no more than its own arguments to _preprocess."""

    def forward(
        self, *args: Any, rotary_positions: Tensor | None = None, **kwargs: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Megatron's.

        Args:
            rotary_positions: [b, s], or [1, s] for all samples: where the rotary embedding takes each token
                to be, all copies of it alike. Of the whole sequence, on every rank of every pipeline stage;
                int64 or float64, which ``rotary_angles`` tells apart. None: where they stand.
        """
        self._rotary_positions = rotary_positions
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._rotary_positions = None

    def _preprocess(self, input_ids: Tensor, position_ids: Tensor, **kwargs: Any) -> tuple:
        """Embed, then repeat every sample K times; row = sample * K + copy."""
        decoder_input, rotary_pos_emb, *rest = super()._preprocess(input_ids, position_ids, **kwargs)
        if decoder_input is not None:
            # [s, b, h] -> [s, b*K, h]
            if self.config.phd_copy_embedding != "none":
                decoder_input = self.copy_embedding(decoder_input, input_ids, position_ids)
            elif self.config.phd_copies > 1:
                decoder_input = decoder_input.repeat_interleave(self.config.phd_copies, dim=1)
        if self._rotary_positions is not None:
            positions = self._rotary_positions
            if len(positions) > 1:
                # [b, s] -> [b*K, s]
                positions = positions.repeat_interleave(self.config.phd_copies, dim=0)
            rotary_pos_emb = rotary_angles(self.rotary_pos_emb, positions)
        elif self.config.phd_consecutive_positions:
            rotary_pos_emb = self._consecutive_angles(decoder_input, kwargs.get("packed_seq_params"))
        return (decoder_input, rotary_pos_emb, *rest)

    def _consecutive_angles(self, decoder_input: Tensor | None, packed: PackedSeqParams | None) -> Tensor:
        """Rotary angles of every row, [s on this context-parallel rank, b*K, 1, d]."""
        length = self.rotary_pos_emb.get_rotary_seq_len(
            None, self.decoder, decoder_input, self.config, packed
        )
        rows = self.decoder.input_tensor if decoder_input is None else decoder_input
        copies = self.config.phd_copies
        positions = consecutive_positions(length, rows.shape[1], copies, rows.device)
        return angles_of_table(self.rotary_pos_emb, positions, length * copies)

    def _postprocess(
        self, hidden_states: Tensor, *args: Any, labels: Tensor | None = None, **kwargs: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The last copy alone goes to the output layer and the loss; a pruned last layer gives no other.

        In validation (with labels, and not in training) returns two losses, [b, s] each: of the last copies,
        and of what the original copies predict.
        """
        last_copy, original = hidden_states, None
        copies, layers = self.config.phd_copies, self.decoder.layers
        if self.post_process and copies > 1 and not (layers and _pruned(layers[-1])):
            # [s, b*K, h] -> [s, b, h]
            last_copy = hidden_states[:, copies - 1 :: copies].contiguous()
            if labels is not None and not self.training:
                original = hidden_states[:, ::copies].contiguous()
        output = super()._postprocess(last_copy, *args, labels=labels, **kwargs)
        if original is None:
            return output
        return output, super()._postprocess(original, *args, labels=labels, **kwargs)


def _pruned(layer: TransformerLayer) -> bool:
    return layer.self_attention.core_attention.last_copy_only
