"""The paper's comparison at the scale of one CPU: five variants, three paired seeds, through the SLURM sweep.

    python benchmarks/reproduce.py FOLDER

Corpus: the Python source of the installed torch (48 MB), which whoever runs this has; documents in an order
that a hash decides, so that the held-out part is like the rest. Then tokenizer, data set, and
examples/slurm/sweep.sh on a SLURM cluster of this machine, or on the one at hand with --here. Interrupt it
and run it again: what is finished stays. In the end the small files go to benchmarks/results/.
"""

import sys

# The folder of this file holds a tokenize.py, and the standard library must go on finding its own.
if __name__ == "__main__":
    sys.path.pop(0)

import argparse
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from phd.run.files import write_json

ROOT = Path(__file__).parents[1]
VARIANTS = ("vanilla", "naive-2", "PHD-2", "PHD-CSWA-2-16-32", "PHD-CSWA-3-16-32")
SEEDS = (1, 2, 3)
VOCABULARY = 2048
MINIMUM_CHARACTERS = 500
RUN_FILES = ("metrics.jsonl", "phd_run.json", "starts.jsonl", "status.json", "launch.sh")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="for the data and the runs")
    parser.add_argument("--size", default="300k", help="a size of examples/sizes (default 300k)")
    parser.add_argument(
        "--here", action="store_true", help="queue the jobs in the SLURM that this machine is part of"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results")
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)

    corpus, tokenizer, data = folder / "corpus.jsonl", folder / "tokenizer.model", folder / "data"
    if not corpus.exists():
        write_corpus(corpus)
    phd = [sys.executable, "-m", "phd.commands.cli"]
    if not tokenizer.exists():
        run([*phd, "data", "train-tokenizer", "--input", corpus, "--output-prefix", folder / "tokenizer",
             "--vocab-size", VOCABULARY])  # fmt: skip
    run([*phd, "data", "tokenize", "--input", corpus, "--tokenizer-model", tokenizer, "--output-prefix", data,
         "--append-eod"])  # fmt: skip

    runs = folder / "runs"
    sweep = [ROOT / "examples/slurm/sweep.sh", args.size, *VARIANTS]
    here = [sys.executable, "-m", "tools.slurm_here", "--nodes", "2", "--cpus", "1", "--"]
    environment = os.environ | {
        "DATA_PREFIX": str(data),
        "TOKENIZER_MODEL": str(tokenizer),
        "RUNS": str(runs),
        "SEEDS": " ".join(map(str, SEEDS)),
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
    }
    run(sweep if args.here else [*here, *sweep], environment)
    if args.here:
        print(f"when no job is left, see {runs}/comparison.html")
        return 0
    keep(runs, args.output, corpus)
    return 0


def write_corpus(path: Path) -> None:
    """One file of torch's Python source a line."""
    texts = source_texts("torch")
    write_documents(path, texts)
    print(f"{path}: {len(texts)} files of torch {version('torch')}, {path.stat().st_size / 1e6:.1f} MB")


def source_texts(*packages: str) -> list[str]:
    """The Python source of installed packages, each text once, in the order of their digests."""
    texts = {}
    for name in packages:
        spec = find_spec(name)
        assert spec is not None and spec.origin is not None, name
        for file in Path(spec.origin).parent.rglob("*.py"):
            text = file.read_text(encoding="utf-8", errors="replace")
            if len(text) >= MINIMUM_CHARACTERS:
                texts[hashlib.sha256(text.encode()).hexdigest()] = text
    return [text for _, text in sorted(texts.items())]


def write_documents(path: Path, texts: Iterable[str]) -> None:
    """One document a line, jsonl, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as lines:
        for text in texts:
            lines.write(json.dumps({"text": text}) + "\n")
        lines.flush()
        os.fsync(lines.fileno())
    temporary.replace(path)


def run(command: list, environment: dict[str, str] | None = None) -> None:
    subprocess.run([str(word) for word in command], cwd=ROOT, env=environment, check=True)


def copy_text(file: Path, target: Path, folder: Path) -> None:
    """Copy it without the paths of this machine."""
    text = file.read_text(encoding="utf-8")
    for path, name in ((folder, "FOLDER"), (Path(sys.prefix), "VENV"), (ROOT, "CHECKOUT")):
        text = text.replace(str(path), name)
    (target / file.name).write_text(text, encoding="utf-8")


def keep(runs: Path, results: Path, corpus: Path) -> None:
    """Copy what is small: the comparison, and of each run its record."""
    results.mkdir(parents=True, exist_ok=True)
    shutil.copy(runs / "comparison.png", results)
    for end in ("json", "md", "tex"):  # the page is 5 MB; `phd compare` makes it again
        copy_text(runs / f"comparison.{end}", results, runs.parent)
    for folder in sorted(path.parent for path in runs.glob("*/phd_run.json")):
        target = results / "runs" / folder.name
        target.mkdir(parents=True, exist_ok=True)
        for name in RUN_FILES:
            copy_text(folder / name, target, runs.parent)
    about = {
        "command": "python benchmarks/reproduce.py FOLDER",
        "corpus": f"Python source of torch {version('torch')}, {corpus.stat().st_size} bytes of jsonl",
        "sha256": hashlib.sha256(corpus.read_bytes()).hexdigest(),
        "machine": f"{os.cpu_count()} CPU cores, one for each node",
        "variants": VARIANTS,
        "seeds": SEEDS,
    }
    write_json(results / "about.json", about)
    print(f"kept in {results}")


if __name__ == "__main__":
    sys.exit(main())
