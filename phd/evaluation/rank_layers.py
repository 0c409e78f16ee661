"""`phd eval MODEL --rank-layers RULE --corpus TEXT`: loads the model, ranks its layers, prints and writes."""

import json
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from phd.evaluation.layers import Ranking, rank, sparse_keys
from phd.evaluation.pieces import PIECES, read_pieces, token_losses
from phd.loading import chosen_device, load_model
from phd.pattern_flags import with_layers
from phd.rules.keys import Full, Keys
from phd.rules.pattern import middle_third
from phd.rules.variant import Variant
from phd.run.arguments import flag

if TYPE_CHECKING:
    from rich.table import Table


def run(args: Namespace) -> int:
    """Rank the layers of ``args.model``.

    Raises:
        ValueError: a flag that is not read here or out of range, a model of fewer than 3 layers, with
            sparse ones or of naive repetition, a corpus too short, or a rule that hides nothing.
    """
    _check(args)
    import torch
    from tqdm import tqdm

    from phd.hf.rope import scale_model

    device = chosen_device(args.device)
    dtype = getattr(torch, args.dtype) if args.dtype else None
    model, tokenizer = load_model(args.model, args.tokenizer, dtype)
    config: Any = model.config
    if (layers := config.num_hidden_layers) < 3:
        raise ValueError(f"--rank-layers needs a model of at least 3 layers, {args.model} has {layers}")
    variant = Variant.parse(getattr(config, "phd_variant", "vanilla"))
    if variant.copies.cached:
        raise ValueError(f"--rank-layers: {variant} repeats naively, which has full layers alone")
    if variant.pattern.sparse:
        raise ValueError(
            f"--rank-layers is for models whose layers are full, {args.model} was trained with {variant}"
        )
    scale_model(model, args.rope_scale, args.lengths[0] if args.lengths else None)
    longest = config.max_position_embeddings
    length = args.lengths[0] if args.lengths else longest
    if not 2 <= length <= longest:
        raise ValueError(f"--lengths {length}: the model reads 2 to {longest} tokens")
    keys = sparse_keys(args.rank_layers, length)
    count = args.limit or PIECES
    pieces = read_pieces(args.corpus, tokenizer, length, 2 * count, args.seed)
    model = model.to(device)

    def losses(pattern: Sequence[Keys], pieces: Sequence[Sequence[int]]) -> list[float]:
        of_tokens = token_losses(with_layers(model, tuple(pattern)), pieces, args.batch_size or 1)
        means: list[float] = of_tokens.mean(1).tolist()
        return means

    ranking = rank(losses, layers, keys, pieces, lambda numbers: tqdm(numbers, desc="layers", leave=False))
    _print(args, ranking, keys)
    if args.output:
        report = {"model": str(args.model), "rule": str(keys), "length": length, "pieces": count}
        report |= ranking.report()
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def _check(args: Namespace) -> None:
    if args.corpus is None:
        raise ValueError("--rank-layers measures the loss of a text: give --corpus")
    for name in ("tasks", "depths", "num_fewshot", "attention_pattern", "full_heads", "full_heads_share"):
        if getattr(args, name) not in (None, []):
            raise ValueError(f"{flag(name)} has no meaning with --rank-layers: leave it out")
    if args.lengths is not None and len(args.lengths) > 1:
        raise ValueError("--lengths: --rank-layers takes one length")
    if args.limit is not None and args.limit < 2:
        raise ValueError(f"--limit must be at least 2 for a standard error, got {args.limit}")
    if args.batch_size == "auto" or (args.batch_size is not None and args.batch_size < 1):
        raise ValueError(f"--batch-size must be a number of at least 1 with --rank-layers: {args.batch_size}")


def _print(args: Namespace, ranking: Ranking, keys: Keys) -> None:
    from rich.console import Console

    console, difference = Console(width=100), ranking.chosen_less_third
    title = f"{args.model}, one layer {keys}, {difference.n} pieces"
    console.print(_layers_table(title, ranking))
    console.print(_patterns_table(ranking))
    if ranking.chosen == middle_third(keys, len(ranking.layers)):
        console.print("the chosen layers are the middle third")
    else:
        console.print(
            f"chosen less middle third: {difference.mean:+.4f} "
            f"(95%: {difference.low:+.4f} to {difference.high:+.4f})"
        )
    print(f"--attention-pattern {ranking.pattern}")


def _layers_table(title: str, ranking: Ranking) -> "Table":
    from rich.table import Table

    table = Table("layer", "change in loss", "standard error", "in the pattern", title=title)
    for layer, change in sorted(enumerate(ranking.layers), key=lambda item: -item[1].mean):
        kept = "full" if ranking.chosen[layer] == Full() else ""
        table.add_row(str(layer), f"{change.mean:+.4f}", f"{change.standard_error:.4f}", kept)
    return table


def _patterns_table(ranking: Ranking) -> "Table":
    from rich.table import Table

    title = f"on other pieces, whose loss is {ranking.held_out_loss:.4f} with full layers"
    table = Table("pattern", "change in loss", "standard error", title=title)
    for name, change in ranking.held_out.items():
        table.add_row(name, f"{change.mean:+.4f}", f"{change.standard_error:.4f}")
    return table
