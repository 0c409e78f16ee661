"""Rotary angles at positions given as data, where Megatron counts the rows of a sequence."""

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch import Tensor

from phd.attention.slices import rank_segments


def rotary_angles(rotary: RotaryEmbedding, positions: Tensor, length: int) -> Tensor:
    """Angles at ``positions`` [b, s] as Megatron's attention takes them: [s, b, 1, d], d rotary dimensions.

    They are entries of Megatron's own table, and so its numbers bit for bit: with Llama 3's scaling, with
    interpolation, with YaRN. Where ranks share the sequence: of the rows on this rank.

    Args:
        positions: whole numbers below ``length``, of the whole sequence.
        length: of the table.
    """
    table = rotary.get_emb(length)
    if isinstance(table, tuple):  # YaRN's, with a factor that attention works out for itself
        table, _ = table
    if (group := rotary.cp_group) is not None:
        runs = rank_segments(positions.shape[1], group.rank(), group.size())
        slices = [positions[:, run.begin : run.begin + run.length] for run in runs]
        positions = torch.cat(slices, dim=1)
    # [length, 1, 1, d] -> [s, b, 1, d]
    return table[positions.T, 0]


def consecutive_positions(length: int, rows: int, copies: int, device: torch.device) -> Tensor:
    """[rows, length]: copy j of position m is at K * m + j; row = sample * K + copy."""
    # [K*s] -> [s, K] -> [K, s] -> [b*K, s]
    return torch.arange(length * copies, device=device).view(length, copies).T.repeat(rows // copies, 1)
