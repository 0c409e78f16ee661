"""Run by test_triton_band.py under Triton's interpreter: errors against the reference, as JSON."""

import json
import sys

import torch

from phd.attention import flash
from phd.attention.kernels.triton_band import TritonBand
from tests.attention.calls import rule_of
from tests.attention.test_attention import random_inputs, run, starts_of

DOCUMENTS = starts_of((1, 30, 6), (37,))
DOCUMENTS_OF_TWO = starts_of((13, 32), (45,))
# length, copies, window, chunk, documents, last copy only, samples, heads, groups, head dimension
CASES = [
    (37, 2, 4, 8, None, False, 2, 4, 2, 24),
    (37, 3, 5, 12, None, False, 2, 2, 1, 16),
    (65, 2, 16, 32, None, False, 1, 2, 1, 64),
    (37, 5, 16, 32, None, False, 1, 1, 1, 8),
    (37, 3, 6, None, DOCUMENTS, False, 2, 2, 2, 24),
    (37, 4, 3, None, None, True, 2, 2, 1, 24),
    (37, 2, 1, None, None, False, 1, 2, 2, 5),
    (3, 2, 40, None, None, False, 2, 1, 1, 8),
    # one position fills a tile of 64
    (9, 41, 3, 7, None, False, 1, 1, 1, 8),
    # chunks that start within tiles of 16 and of 8 positions
    (60, 3, 16, 24, None, False, 1, 2, 1, 8),
    (45, 5, 12, 20, DOCUMENTS_OF_TWO, False, 2, 1, 1, 8),
]
HALF = (0, 4, 5)
"""Cases that run in half precision too: the same kernels, with other conversions between dtypes."""


def error(results: list, expected: list) -> float:
    """Largest error of output and gradients, relative to the largest element of each."""
    pairs = zip(results, expected, strict=True)
    return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs)


def main() -> None:
    flash._band_class = lambda *shape: TritonBand  # type: ignore[assignment]
    errors = {}
    for number, case in enumerate(CASES):
        length, copies, window, chunk, documents, last, samples, heads, groups, dim = case
        for dtype in (torch.float32, torch.float16) if number in HALF else (torch.float32,):
            inputs = random_inputs(length, samples * copies, heads, groups, dim, dtype)
            if last:
                inputs[3] = inputs[3][:, ::copies]
            rule = rule_of(copies, window, chunk)
            arguments = {"document_starts": documents, "last_copy_only": last}
            results = run(inputs, rule, **arguments)
            expected = run(inputs, rule, dtype=torch.float64, backend="reference", **arguments)
            name = f"{length}-{copies}-{window}-{chunk}-{documents is not None}-{last}-{dtype}"
            errors[name] = error(results, expected)
    errors["halo"] = halo_error()
    json.dump(errors, sys.stdout)


def halo_error() -> float:
    """The second half of a sequence, with the keys before it as a halo, against the whole band."""
    from phd.attention.band import Band

    generator = torch.Generator().manual_seed(0)
    length, half, window, hidden, heads = 40, 20, 6, 2, 2
    query, key, value, out, grad = (
        torch.randn(length, 1, hidden, heads, 8, generator=generator) for _ in range(5)
    )
    lse = torch.randn(length, 1, hidden, heads, generator=generator)
    start = torch.arange(length) - window + 1
    rows = slice(half, None)
    halo = torch.stack((key[half - window + 1 : half], value[half - window + 1 : half]))
    found = []
    for kind in (Band, TritonBand):
        band = kind(query[rows], hidden, start[rows] - half, window, 0.3)
        merged, top, grad_query = out[rows].clone(), lse[rows].clone(), torch.zeros_like(query[rows])
        band.merge(merged, top, query[rows], key[rows], value[rows], halo)
        grad_keys, grad_halo = torch.stack((key[rows], value[rows])), torch.zeros_like(halo)
        band.backward(
            grad[rows], query[rows], key[rows], value[rows], merged, top, grad_query, grad_keys, halo,
            grad_halo,
        )  # fmt: skip
        found.append([merged, top, grad_query, grad_keys, grad_halo])
    return error(found[1], [tensor.double() for tensor in found[0]])


if __name__ == "__main__":
    main()
