"""`phd eval`: tasks of the harness, by name or from a corpus at hand."""

import argparse
import json
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from phd.loading import load_model

PAPER = "phd_paper"
SEVEN = ("arc_easy", "arc_challenge", "hellaswag", "piqa", "winogrande", "mmlu", "commonsense_qa")
# arXiv 2504.14992, tables 1 and 2: training loss, average accuracy over the seven in percent.
PAPERS_ROWS = (
    ("1.2B vanilla", 2.601, 54.7),
    ("1.2B PHD-CSWA-2-16-32", 2.576, 56.2),
    ("1.2B PHD-CSWA-3-16-32", 2.567, 56.7),
    ("550M vanilla", 2.782, 49.3),
    ("550M PHD-SWA-2-16-inf", 2.753, 50.1),
    ("550M PHD-SWA-3-16-inf", 2.739, 50.2),
    ("550M PHD-SWA-5-16-inf", 2.725, 51.1),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phd eval`."""
    parser.add_argument(
        "model", type=Path, help="a Hugging Face folder, the --save folder of a run, or one iter_* in it"
    )
    parser.add_argument(
        "--tasks", nargs="+", default=[], help=f"names of the harness's tasks; {PAPER} is the paper's seven"
    )
    parser.add_argument(
        "--corpus", type=Path, help="held-out jsonl: adds its perplexity, and questions made from it"
    )
    parser.add_argument("--limit", type=int, help="so many documents of each task (default 200 of a corpus)")
    parser.add_argument("--num-fewshot", type=int, help="worked examples before each question")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0, help="of the questions made from the corpus")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; by default a GPU if there is one")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: as stored")
    parser.add_argument("--tokenizer", type=Path, help="where it lies now, if not where training found it")
    parser.add_argument("--output", type=Path, help="JSON file for the results")


def run(args: Namespace) -> int:
    """Evaluate and print one table.

    Raises:
        ValueError: nothing to evaluate on, an unknown task, or the harness is not installed.
    """
    if not args.tasks and args.corpus is None:
        raise ValueError("give --tasks, --corpus, or both")
    for name in ("batch_size", "limit"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ValueError(
            f"the evaluation harness is not installed ({error}): pip install 'pretrain-phd[eval]'"
        ) from error
    import torch

    from phd.evaluation.corpus import TASKS, write_tasks
    from phd.evaluation.harness import CachedLM

    with tempfile.TemporaryDirectory(prefix="phd-eval-") as temporary:
        folder = Path(temporary)
        tasks: list[Any] = list(args.tasks)
        if args.corpus is not None:
            write_tasks(args.corpus, folder, args.limit or 200, args.seed)
            tasks += TASKS
        manager = TaskManager(include_path=[str(folder), str(Path(__file__).parent)])
        if unknown := [name for name in tasks if name not in manager.all_tasks]:
            raise ValueError(f"--tasks {unknown[0]}: the harness has no such task")
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = getattr(torch, args.dtype) if args.dtype else None
        model, tokenizer = load_model(args.model, args.tokenizer, dtype)
        lm = CachedLM(
            pretrained=model.to(torch.device(device)),
            tokenizer=tokenizer,
            batch_size=args.batch_size,
            max_length=model.config.max_position_embeddings,
        )
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
    rows = [
        {"task": task, "metric": key.partition(",")[0], "value": value,
         "stderr": metrics.get(key.replace(",", "_stderr,"))}
        for task, metrics in outcome["results"].items()
        for key, value in metrics.items()
        if isinstance(value, float) and "_stderr" not in key
    ]  # fmt: skip
    report = {"model": str(args.model), "results": rows, "n_samples": outcome.get("n-samples")}
    _print(report, rows)
    if args.output:
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def _print(report: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=100)
    table = Table("task", "metric", "value", "standard error", title=report["model"])
    for row in rows:
        error = row["stderr"]
        shown = f"{error:.4f}" if isinstance(error, float) else ""
        table.add_row(row["task"], row["metric"], f"{row['value']:.4f}", shown)
    console.print(table)
    accuracies = {row["task"]: row["value"] for row in rows if row["metric"] == "acc"}
    if any(task in accuracies for task in SEVEN):
        table = Table("model", "loss", "average accuracy", title="Beside the paper's (500B and 300B tokens)")
        for name, loss, accuracy in PAPERS_ROWS:
            table.add_row(name, f"{loss:.3f}", f"{accuracy:.1f}")
        missing = [task for task in SEVEN if task not in accuracies]
        mean = 100 * sum(accuracies[t] for t in SEVEN if t in accuracies) / (len(SEVEN) - len(missing))
        note = f"without {', '.join(missing)}" if missing else ""
        table.add_row(f"yours {note}".strip(), "", f"{mean:.1f}")
        console.print(table)
