"""Rotary angles at positions given as data, where Megatron counts the rows of a sequence."""

import math
from argparse import Namespace

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch import Tensor

from phd.attention.slices import rank_segments


def positions_given(args: Namespace) -> bool:
    """Whether rotary positions come with the batch."""
    return args.rope_max_scale > 0 or args.position_gaps_to is not None


def rotary_angles(rotary: RotaryEmbedding, positions: Tensor) -> Tensor:
    """Angles at ``positions`` [b, s] as Megatron's attention takes them: [s, b, 1, d], fp32, d rotary
    dimensions. Where ranks share the sequence: of the rows on this rank.

    Whole positions, of an integer type, give Megatron's own product in fp32 bit for bit, which is 0.004 off
    at 131072. Those in float64 are multiplied and reduced to 0 .. 2 pi in float64, with the frequencies that
    Megatron has in fp32: 2.4e-7 off at most, at any position.

    Args:
        rotary: of --position-embedding-type rope; with Llama 3's scaling, with interpolation.
        positions: of the whole sequence, int64 or float64.
    """
    positions = _on_this_rank(rotary, positions)
    frequencies = rotary.inv_freq.to(positions.device)
    factor = rotary.seq_len_interpolation_factor
    # [b, s] -> [s, b, 1]
    positions = positions.T[..., None]
    if positions.is_floating_point():
        angles = positions / (factor or 1) * frequencies.to(positions.dtype)
        angles = torch.remainder(angles, 2 * math.pi).to(frequencies.dtype)
    else:
        positions = positions.to(frequencies.dtype)
        if factor is not None:
            positions = positions * (1 / factor)
        angles = positions * frequencies
    # [s, b, d/2] -> [s, b, 1, d]
    if rotary.rotary_interleaved:
        return angles.repeat_interleave(2, dim=-1)[:, :, None]
    return torch.cat((angles, angles), dim=-1)[:, :, None]


def angles_of_table(rotary: RotaryEmbedding, positions: Tensor, length: int) -> Tensor:
    """As :func:`rotary_angles`, entries of Megatron's own table: with YaRN too.

    Args:
        positions: whole numbers below ``length``, of the whole sequence.
        length: of the table.
    """
    table = rotary.get_emb(length)
    if isinstance(table, tuple):  # YaRN's, with a factor that attention works out for itself
        table, _ = table
    # [length, 1, 1, d] -> [s, b, 1, d]
    return table[_on_this_rank(rotary, positions).T, 0]


def _on_this_rank(rotary: RotaryEmbedding, positions: Tensor) -> Tensor:
    """[b, s of the whole sequence] -> [b, s of this context-parallel rank]."""
    if (group := rotary.cp_group) is None:
        return positions
    segments = rank_segments(positions.shape[1], group.rank(), group.size())
    return torch.cat([positions[:, each.begin : each.begin + each.length] for each in segments], dim=1)


def consecutive_positions(length: int, rows: int, copies: int, device: torch.device) -> Tensor:
    """[rows, length]: copy j of position m is at K * m + j; row = sample * K + copy."""
    # [K*s] -> [s, K] -> [K, s] -> [b*K, s]
    return torch.arange(length * copies, device=device).view(length, copies).T.repeat(rows // copies, 1)
