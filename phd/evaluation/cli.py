"""`phd eval`: tasks of the harness, by name or from a corpus at hand, over a grid of lengths some of them."""

import argparse
import json
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from phd.compare.paper import REPORTED, SIZES
from phd.evaluation.long_context import DEPTHS, LENGTHS_FROM, SAMPLES, cell, default_lengths
from phd.evaluation.patterns import add_arguments as add_pattern_arguments
from phd.evaluation.pieces import PIECES
from phd.evaluation.ruler import LENGTHS_FROM as RULER_LENGTHS_FROM
from phd.evaluation.ruler import OF_CORPUS, RULER, TOKENS, refuse_missing
from phd.evaluation.ruler import SAMPLES as RULER_SAMPLES
from phd.loading import add_rope_scale, chosen_device, load_model
from phd.pattern_flags import asked_layers, with_layers
from phd.rules.pattern import LayerPattern
from phd.run.arguments import flag

PAPER = "phd_paper"
# of the paper's tables, as the harness has them; it downloads their data on first use
SEVEN = ("arc_easy", "arc_challenge", "hellaswag", "piqa", "winogrande", "mmlu", "commonsense_qa")


LONG = {**SAMPLES, **dict.fromkeys(TOKENS, RULER_SAMPLES)}
"""The tasks over a grid of lengths, and how many prompts of a cell unless told."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phd eval`."""
    parser.add_argument(
        "model", type=Path, help="a Hugging Face folder, the --save folder of a run, or one iter_* in it"
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=[],
        help=f"names of the harness's tasks; {PAPER} is the paper's seven; {', '.join(SAMPLES)} are for long "
        f"contexts, made from --corpus; so are RULER's {', '.join(TOKENS)}, or {RULER} for all of these",
    )
    parser.add_argument(
        "--corpus",
        type=Path,
        help="held-out jsonl: adds its perplexity and questions made from it, unless --tasks names what to "
        "make from it",
    )
    parser.add_argument(
        "--lengths",
        type=_numbers,
        metavar="N,N,...",
        help="tokens of the long contexts (default: powers of two from "
        f"{LENGTHS_FROM}, of RULER {RULER_LENGTHS_FROM}, up to the model's longest)",
    )
    parser.add_argument(
        "--depths",
        type=_numbers,
        metavar="N,N,...",
        help=f"of phd_needle, in percent of the text (default {','.join(map(str, DEPTHS))})",
    )
    parser.add_argument(
        "--limit",
        type=int,
        help=f"so many documents of each task (default 200 of a corpus, {SAMPLES['phd_needle']} of a cell of "
        f"phd_needle, {RULER_SAMPLES} of a length of the other tasks for long contexts)",
    )
    parser.add_argument("--num-fewshot", type=int, help="worked examples before each question")
    parser.add_argument(
        "--batch-size",
        type=_batch_size,
        help="a number, or auto for the harness's choice (default 16; 1 where pieces of text are read)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the questions made from the corpus")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; by default a GPU if there is one")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: as stored")
    parser.add_argument("--tokenizer", type=Path, help="where it lies now, if not where training found it")
    add_pattern_arguments(parser)
    parser.add_argument(
        "--rank-layers",
        metavar="RULE",
        help="instead of tasks: make each layer sparse by itself (sink.64.1.4, ...), rank them by the loss "
        "of pieces of --corpus, and compare the pattern made from that with the middle third; --lengths is "
        f"one length (default the model's longest), --limit the pieces to rank by (default {PIECES}) and "
        "those to compare on",
    )
    parser.add_argument(
        "--loss-by-position",
        action="store_true",
        help="instead of tasks: the loss of pieces of --corpus read at each of --lengths, by the place in "
        "them: does more context help, and how far does the model read? --limit is the pieces (default "
        f"{PIECES}); --rope-scale auto takes the least whole scale for each length",
    )
    add_rope_scale(parser, "the longest of --lengths")
    parser.add_argument(
        "--output", type=Path, help="JSON file for the results; phd_needle's heat map is the .png beside it"
    )


def _batch_size(text: str) -> int | str:
    """A number, or the harness's auto."""
    return text if text == "auto" else int(text)


def _numbers(text: str) -> list[int]:
    """Whole numbers, sorted, each once."""
    return sorted({int(part) for part in text.split(",")})


def run(args: Namespace) -> int:
    """Evaluate and print one table, and one of the accuracies by length. Or rank the layers, or measure the
    loss by position.

    Raises:
        ValueError: nothing to evaluate on, an unknown task, a corpus too short, a length or depth out of
            range, or the harness is not installed.
    """
    if args.rope_scale is None and args.lengths is None:
        raise ValueError(
            "--rope-scale auto goes with --lengths, which say how long prompts are: or pass a number"
        )
    if args.loss_by_position:
        from phd.evaluation import positions

        return positions.run(args)
    if args.rank_layers is not None:
        from phd.evaluation import rank_layers

        return rank_layers.run(args)
    args.tasks = [name for asked in args.tasks for name in (TOKENS if asked == RULER else [asked])]
    _check(args)
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ValueError(
            f"the evaluation harness is not installed ({error}): pip install 'pretrain-phd[eval]'"
        ) from error
    import torch

    from phd.evaluation.corpus import TASKS, shorten_contexts, write_group, write_tasks
    from phd.evaluation.harness import CachedLM
    from phd.hf.rope import scale_model

    long = [name for name in LONG if name in args.tasks]
    tasks: list[Any] = [name for name in args.tasks if name not in LONG]
    made = {*TASKS, *SAMPLES, *OF_CORPUS}
    if args.corpus is not None and not made & {*args.tasks}:
        tasks += TASKS
    with tempfile.TemporaryDirectory(prefix="phd-eval-") as temporary:
        folder = Path(temporary)
        if args.corpus is not None and {*TASKS} & {*tasks}:
            write_tasks(args.corpus, folder, args.limit or 200, args.seed)
        if PAPER in tasks:
            write_group(PAPER, SEVEN, {}, folder)
        # to index its own tasks takes the harness twenty seconds
        manager = TaskManager(include_path=str(folder), include_defaults=bool({*tasks} - {*TASKS}))
        if unknown := [name for name in tasks if name not in manager.all_tasks]:
            raise ValueError(f"--tasks {unknown[0]}: the harness has no such task")
        device = chosen_device(args.device)
        dtype = getattr(torch, args.dtype) if args.dtype else None
        model, tokenizer = load_model(args.model, args.tokenizer, dtype)
        title = str(args.model)
        scale = scale_model(model, args.rope_scale, args.lengths[-1] if args.lengths else None)
        if scale != 1:
            title += f", rope scale {scale:g}"
        layers = asked_layers(args, model.config)
        if layers is not None:
            model = with_layers(model, layers)
            pattern = str(LayerPattern.of(layers))
            title += f", {pattern}"
        lm = CachedLM(
            pretrained=model.to(device),
            tokenizer=tokenizer,
            batch_size=args.batch_size or 16,
            max_length=model.config.max_position_embeddings,
        )
        if "corpus_cloze" in tasks and (shortened := shorten_contexts(folder, lm.tok_encode, lm.max_length)):
            most = f"the {lm.max_length:,} tokens that the model reads"
            print(f"corpus_cloze: {shortened:,} contexts lose first words, to fit {most}", file=sys.stderr)
        grids: list[dict[str, Any]] = []
        if long:
            grids = _write_grids(args, long, lm, folder)
            own = TaskManager(include_path=str(folder), include_defaults=False)
            tasks += own.load(long)["groups"].values()
        outcome = lm_eval.simple_evaluate(
            lm,
            tasks=tasks,
            num_fewshot=args.num_fewshot,
            limit=args.limit,
            task_manager=manager,
            log_samples=False,
            bootstrap_iters=1000,
        )
    assert outcome is not None
    _fill(grids, outcome["results"])
    rows = [
        {"task": task, "metric": key.partition(",")[0], "value": value,
         "stderr": metrics.get(key.replace(",", "_stderr,"))}
        for task, metrics in outcome["results"].items()
        for key, value in metrics.items()
        if isinstance(value, float) and "_stderr" not in key
    ]  # fmt: skip
    report = {"model": str(args.model), "results": rows, "n_samples": outcome.get("n-samples")}
    if layers is not None:
        report["attention_pattern"] = pattern
    if scale != 1:
        report["rope_scale"] = scale
    if grids:
        report["grids"] = grids
    _print(title, rows, grids)
    if args.output:
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        for grid in grids:
            if grid["task"] == "phd_needle":
                from phd.evaluation.grid import heat_map

                args.output.with_suffix(".png").write_bytes(heat_map(grid, title))
    return 0


def _check(args: Namespace) -> None:
    if not args.tasks and args.corpus is None:
        raise ValueError("give --tasks, --corpus, or both")
    for name in ("batch_size", "limit"):
        value = getattr(args, name)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{flag(name)} must be at least 1, got {value}")
    long = [name for name in args.tasks if name in LONG]
    if args.corpus is None and (of_corpus := [name for name in long if name in SAMPLES]):
        raise ValueError(f"--tasks {of_corpus[0]} is made from a text: give --corpus")
    refuse_missing(args.tasks, args.corpus)
    if args.lengths is not None and not long:
        raise ValueError(f"--lengths goes with --tasks {', '.join(SAMPLES)} and those of RULER")
    if args.depths is not None and "phd_needle" not in long:
        raise ValueError("--depths goes with --tasks phd_needle")
    for depth in args.depths or ():
        if not 0 <= depth <= 100:
            raise ValueError(f"--depths must be from 0 to 100, got {depth}")
    if args.output is not None and args.output.suffix == ".png" and "phd_needle" in long:
        raise ValueError(f"--output {args.output} is for JSON; the heat map is written beside it")


def _write_grids(args: Namespace, tasks: list[str], lm: Any, folder: Path) -> list[dict[str, Any]]:
    """The tasks' files, and the axes of each one's grid: rows are depths, columns lengths."""
    from phd.evaluation.haystack import Haystack
    from phd.evaluation.long_context import write_long_tasks
    from phd.evaluation.ruler import Ruler, write_ruler_tasks

    theirs = [task for task in tasks if task in TOKENS]
    least = RULER_LENGTHS_FROM if theirs else LENGTHS_FROM
    lengths: list[int] = args.lengths or default_lengths(lm.max_length, least)
    if lengths[0] < 1:
        raise ValueError(f"--lengths must be at least 1, got {lengths[0]}")
    if lengths[-1] > lm.max_length:
        raise ValueError(f"--lengths {lengths[-1]}: the model reads at most {lm.max_length} tokens")
    depths: list[int] = args.depths or list(DEPTHS)
    unknown = lm.tokenizer.unk_token_id
    haystack = None
    if {*tasks} & {*SAMPLES, *OF_CORPUS}:
        haystack = Haystack(args.corpus, lm.tok_encode, unknown, lengths[-1])
    if own := [task for task in tasks if task in SAMPLES]:
        assert haystack is not None
        write_long_tasks(own, haystack, folder, lengths, depths, args.limit, args.seed)
    ruler = Ruler(lm.tok_encode, unknown, haystack)
    write_ruler_tasks(theirs, ruler, folder, lengths, args.limit or RULER_SAMPLES, args.seed)
    return [
        {"task": task, "lengths": lengths, "depths": depths if task == "phd_needle" else [None],
         "samples": args.limit or LONG[task]}
        for task in tasks
    ]  # fmt: skip


def _fill(grids: list[dict[str, Any]], results: dict[str, Any]) -> None:
    """Move the accuracies of the cells from ``results`` to the grids."""
    for grid in grids:
        grid["accuracy"] = [
            [results.pop(cell(grid["task"], length, depth))["acc,none"] for length in grid["lengths"]]
            for depth in grid["depths"]
        ]


def _print(title: str, rows: list[dict[str, Any]], grids: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=100)
    table = Table("task", "metric", "value", "standard error", title=title)
    for row in rows:
        error = row["stderr"]
        shown = f"{error:.4f}" if isinstance(error, float) else ""
        table.add_row(row["task"], row["metric"], f"{row['value']:.4f}", shown)
    console.print(table)
    if grids:
        from phd.evaluation.grid import grid_table

        console.print(grid_table(grids))
    accuracies = {row["task"]: row["value"] for row in rows if row["metric"] == "acc"}
    if any(task in accuracies for task in SEVEN):
        beside = f"Beside the paper's ({' and '.join(SIZES.values())} tokens)"
        table = Table("model", "loss", "average accuracy", title=beside)
        for size, variants in REPORTED.items():
            for name, reported in variants.items():
                table.add_row(f"{size} {name}", f"{reported.loss:.3f}", f"{reported.accuracy:.1f}")
        missing = [task for task in SEVEN if task not in accuracies]
        mean = 100 * sum(accuracies[t] for t in SEVEN if t in accuracies) / (len(SEVEN) - len(missing))
        note = f"without {', '.join(missing)}" if missing else ""
        table.add_row(f"yours {note}".strip(), "", f"{mean:.1f}")
        console.print(table)
