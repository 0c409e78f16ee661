"""What a longer context is worth to a model: `phd eval --loss-by-position`.

The same pieces of text are read at each of --lengths: of a shorter length their ends. So a column of the
table that this prints is of a length that was read, a row of the places in it, from one length to the next:
where a model can read no further than it was trained, its loss rises along a column.
"""

import copy
import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

from phd.evaluation.pieces import PIECES, read_pieces, token_losses
from phd.loading import chosen_device, load_model
from phd.pattern_flags import asked_layers, with_layers
from phd.rules.pattern import LayerPattern
from phd.run.arguments import flag

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Loss:
    """Of some tokens of every piece, in nats a token."""

    mean: float
    standard_error: float
    """over pieces"""

    @classmethod
    def of(cls, losses: "torch.Tensor") -> "Loss":
        """Args: losses: [pieces, tokens]."""
        each = losses.mean(1)
        return cls(each.mean().item(), each.std().item() / sqrt(len(each)))


@dataclass(frozen=True)
class Reading:
    """One of --lengths."""

    length: int
    rope_scale: float
    loss: Loss
    """of all tokens but the first"""
    by_position: list[Loss]
    """of the tokens from one of --lengths to the next, up to this one"""


def read_at(losses: "torch.Tensor", lengths: Sequence[int], rope_scale: float) -> Reading:
    """Args:
    losses: [pieces, length - 1] of the tokens from the second on.
    lengths: the last one is theirs.
    """
    edges = [1, *lengths]
    by_position = [
        Loss.of(losses[:, first - 1 : last - 1]) for first, last in zip(edges, edges[1:], strict=False)
    ]
    return Reading(lengths[-1], rope_scale, Loss.of(losses), by_position)


def run(args: Namespace) -> int:
    """Read, print a table, and write it.

    Raises:
        ValueError: a flag that is not read here or out of range, a length that the model does not read, or
            a corpus too short.
    """
    _check(args)
    import torch
    from tqdm import tqdm

    from phd.hf.rope import scale_model

    device = chosen_device(args.device)
    dtype = getattr(torch, args.dtype) if args.dtype else None
    model, tokenizer = load_model(args.model, args.tokenizer, dtype)
    title = str(args.model)
    layers = asked_layers(args, model.config)
    if layers is not None:
        model = with_layers(model, layers)
        title += f", {LayerPattern.of(layers)}"
    lengths: list[int] = args.lengths
    longest = model.config.max_position_embeddings
    if args.rope_scale is not None and lengths[-1] > longest * args.rope_scale:
        raise ValueError(f"--lengths {lengths[-1]}: the model reads at most {longest * args.rope_scale:g}")
    count = args.limit or PIECES
    pieces = read_pieces(args.corpus, tokenizer, lengths[-1], count, args.seed)
    model, plain = model.to(device), copy.deepcopy(model.config)
    readings = []
    for index, length in enumerate(tqdm(lengths, desc="lengths", leave=False)):
        model.config = copy.deepcopy(plain)
        scale = scale_model(model, args.rope_scale, length)
        ends = [piece[-length:] for piece in pieces]
        losses = token_losses(model, ends, args.batch_size or 1).cpu()
        readings.append(read_at(losses, lengths[: index + 1], scale))
    _print(f"{title}, {count} pieces", readings)
    if args.output:
        report: dict[str, Any] = {"model": str(args.model), "pieces": count, "lengths": lengths}
        if layers is not None:
            report["attention_pattern"] = str(LayerPattern.of(layers))
        report["readings"] = [asdict(reading) for reading in readings]
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def _check(args: Namespace) -> None:
    if args.corpus is None:
        raise ValueError("--loss-by-position measures the loss of a text: give --corpus")
    for name in ("tasks", "depths", "num_fewshot", "rank_layers"):
        if getattr(args, name) not in (None, []):
            raise ValueError(f"{flag(name)} has no meaning with --loss-by-position: leave it out")
    if args.lengths is None:
        raise ValueError("--loss-by-position reads the text at several lengths: give --lengths 256,1024,4096")
    if args.lengths[0] < 2:
        raise ValueError(f"--lengths must be at least 2 with --loss-by-position, got {args.lengths[0]}")
    if args.limit is not None and args.limit < 2:
        raise ValueError(f"--limit must be at least 2 for a standard error, got {args.limit}")
    if args.batch_size == "auto" or (args.batch_size is not None and args.batch_size < 1):
        raise ValueError(
            f"--batch-size must be a number of at least 1 with --loss-by-position: {args.batch_size}"
        )


def _print(title: str, readings: Sequence[Reading]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("position", *(f"{reading.length:,} tokens" for reading in readings), title=title)
    edges = [0, *(reading.length for reading in readings)]
    for row, (first, last) in enumerate(zip(edges, edges[1:], strict=False)):
        cells = [
            _shown(reading.by_position[row]) if row < len(reading.by_position) else "" for reading in readings
        ]
        table.add_row(f"{first:,} to {last:,}", *cells)
    table.add_section()
    table.add_row("all", *(_shown(reading.loss) for reading in readings))
    if any(reading.rope_scale != 1 for reading in readings):
        table.add_row("rope scale", *(f"{reading.rope_scale:g}" for reading in readings))
    Console(width=40 + 20 * len(readings)).print(table)


def _shown(loss: Loss) -> str:
    return f"{loss.mean:.4f} ±{loss.standard_error:.4f}"
