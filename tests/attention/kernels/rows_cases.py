"""Run by test_triton_rows.py under Triton's interpreter: errors against the dense rule, as JSON."""

import json
import sys

import torch

from phd.attention.kernels.triton_rows import attend_rows
from tests.attention.calls import rule_of

# length, columns, all copies, copies, window, chunk, padding, ring, heads, groups, head dimension
CASES = {
    "step": (37, 1, True, 3, 5, 12, None, False, 4, 2, 24),
    "step-ring": (37, 1, True, 3, 5, 12, None, True, 4, 2, 24),
    "step-ring-without-chunks": (90, 1, True, 4, 7, None, None, True, 6, 2, 16),
    "step-ring-at-the-start": (3, 1, True, 3, 6, None, None, True, 2, 2, 8),
    "step-ring-first-of-a-chunk": (25, 1, True, 3, 6, 12, None, True, 2, 1, 8),
    "step-ring-padded": (40, 1, True, 2, 16, 32, (0, 13, 39), True, 4, 4, 8),
    "step-many-copies": (70, 1, True, 40, 3, 8, None, True, 2, 1, 8),
    "step-window-of-one": (37, 1, True, 3, 1, None, None, True, 4, 2, 24),
    "vanilla": (150, 1, True, 1, 1, None, None, False, 4, 2, 24),
    "vanilla-padded": (150, 1, True, 1, 1, None, (3, 0), False, 4, 2, 24),
    "vanilla-one-key": (1, 1, True, 1, 1, None, None, False, 4, 2, 24),
    "prompt": (61, 29, False, 3, 5, 32, None, False, 4, 2, 24),
    "prompt-without-chunks": (80, 41, False, 4, 6, None, None, False, 2, 1, 16),
    "prompt-padded": (61, 61, False, 3, 5, 12, (0, 20, 60), False, 2, 1, 8),
    "prompt-wide": (70, 6, False, 20, 16, 32, None, False, 2, 1, 64),
}
HALF = ("step", "step-ring-padded", "vanilla", "prompt")
"""Cases that run in half precision too: the same kernels, with other conversions between dtypes."""
PROGRAMS = (1, 64)
"""One program for all keys of a tile of rows, and so many that some have none."""


def error(case: tuple, dtype: torch.dtype, programs: int) -> float:
    """Largest error of the output, relative to the largest element; the ring must be right bit for bit."""
    length, columns, everything, copies, window, chunk, pads, has_ring, heads, groups, dim = case
    generator = torch.Generator().manual_seed(0)
    samples, hidden, first = len(pads or (0,)), copies - 1, length - columns

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    query_copies = copies if everything else hidden
    query = random(samples, columns * query_copies, heads, dim).transpose(1, 2)
    room = length + 9 if has_ring else length
    key, value = (random(samples, groups, room, dim) for _ in range(2))
    # hidden keys of every column; what a step holds of them is cut out
    every = [random(samples, groups, length, hidden, dim) for _ in range(2)]
    ring = window - 1 if has_ring else 0
    held = columns if has_ring else min(length, columns + window - 1)
    given = [x[:, :, length - held :].flatten(2, 3) for x in every]
    rings = [x.new_zeros(samples, groups, ring, hidden, dim) for x in every]
    for lying in range(max(first - ring, 0), first) if ring else ():
        for buffer, x in zip(rings, every, strict=True):
            buffer[:, :, lying % ring] = x[:, :, lying]
    flat = [x.flatten(2, 3).clone() for x in rings]
    padding = None if pads is None else torch.tensor(pads)
    end = torch.tensor([length]) if has_ring else None
    rule = {"copies": copies, "window": window, "chunk": chunk}
    sizes = {"length": 0 if has_ring else length, "columns": columns, "scale": 0.3, "programs": programs}
    out = attend_rows(query, key, value, *given, *flat, end, padding, **rule, **sizes)
    if ring:
        for buffer, x in zip(rings, every, strict=True):
            buffer[:, :, first % ring] = x[:, :, first]
        assert all(torch.equal(x.flatten(2, 3), y) for x, y in zip(rings, flat, strict=True))

    column = torch.arange(first, length).repeat_interleave(query_copies)
    copy = torch.arange(copies - query_copies, copies).repeat(columns)
    key_column = torch.cat([torch.arange(length), torch.arange(length).repeat_interleave(hidden)])
    key_copy = torch.cat([torch.zeros(length, dtype=torch.long), torch.arange(1, copies).repeat(length)])
    worst = 0.0
    for sample, pad in enumerate(pads or (0,)):
        keys, values = (
            torch.cat([o[sample, :, :length], h[sample].flatten(1, 2)], 1).double()
            for o, h in ((key, every[0]), (value, every[1]))
        )
        seen = rule_of(copies, window, chunk).sees(
            (column - pad)[:, None], copy[:, None], key_column - pad, key_copy
        )
        seen &= key_column >= pad
        grouped = query[sample].double().unflatten(0, (groups, -1))
        scores = (grouped @ keys.unsqueeze(1).mT * 0.3).masked_fill(~seen, float("-inf"))
        expected = (scores.softmax(-1) @ values.unsqueeze(1)).flatten(0, 1).transpose(0, 1)
        assert not out[sample, column < pad].any()  # rows of padding: zeros
        real = column >= pad
        difference = (out[sample].double() - expected)[real].abs().max()
        worst = max(worst, float(difference / expected[real].abs().max()))
    return worst


def main() -> None:
    kinds = [(name, programs, torch.float32) for name in CASES for programs in PROGRAMS]
    kinds += [(name, PROGRAMS[-1], torch.float16) for name in HALF]
    errors = {
        f"{name}-{programs}-{dtype}": error(CASES[name], dtype, programs) for name, programs, dtype in kinds
    }
    json.dump(errors, sys.stdout)


if __name__ == "__main__":
    main()
