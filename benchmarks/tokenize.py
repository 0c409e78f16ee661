"""Tokenizing end to end, jsonl to .bin/.idx: `phd data tokenize` beside what it replaces, on the same cores.

    python benchmarks/tokenize.py           # about ten minutes on 2 cores; writes tokenize.json
    python benchmarks/tokenize.py --large   # 2 GB, and one document of 500 MB; writes tokenize_large.json
    python benchmarks/tokenize.py --megabytes 5 --rounds 1 --output /tmp/try.json   # a minute

The corpus is the Python source that lies in this environment, one file a document, without those that spell
<|endoftext|>: only phd keeps that text. Two tokenizers of 16,000
are trained on a part of it, and each method gives the ids of its tokenizer, which is checked:

SentencePiece BPE: phd with 1 and 2 workers and with the reference alone; Megatron's loop (preprocess_data.py:
Pool.imap with chunks of 32 lines, one document an encode, the parent writes); SentencePiece's own batch API
with threads, in a plain loop.
Byte-level BPE of Hugging Face: phd; a plain loop over tokenizers' encode_batch; datatrove's
MegatronDocumentTokenizer, if the Python of --datatrove-python (this one by default) has it.

Every measurement is a process of its own, started in turn; times are medians of wall time, from start to end.
The others are also timed without their imports (seven seconds for Megatron's), which a long run forgets.
Memory is the largest resident set of any one of its processes.
"""

import sys

# The standard library has a module of this file's name, which it must go on finding.
if __name__ == "__main__":
    sys.path.pop(0)


import argparse
import importlib
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_suffix(".json")
VOCAB_SIZE = 16_000
SEPARATE = "-- run --"


# Each of these runs in a process of its own: (corpus, tokenizer, output prefix, workers).


def megatron_loop(corpus: Path, tokenizer: Path, prefix: Path, workers: int) -> None:
    import multiprocessing

    import numpy as np
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    with multiprocessing.Pool(workers, _load_sentencepiece, (tokenizer,)) as pool, open(corpus) as lines:
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(VOCAB_SIZE))
        for ids in pool.imap(_encode_line, lines, 32):
            builder.add_document(np.array(ids), [len(ids)])
    builder.finalize(f"{prefix}.idx")


_processor: Any = None


def _load_sentencepiece(tokenizer: Path) -> None:
    global _processor
    import sentencepiece

    _processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))


def _encode_line(line: str) -> list[int]:
    return [*_processor.encode(json.loads(line)["text"]), _processor.eos_id()]


def sentencepiece_batches(corpus: Path, tokenizer: Path, prefix: Path, workers: int) -> None:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    batches = (processor.encode(texts, add_eos=True, num_threads=workers) for texts in _text_batches(corpus))
    _write_plainly(prefix, batches)


def hugging_face_batches(corpus: Path, tokenizer: Path, prefix: Path, workers: int) -> None:
    import tokenizers

    loaded = tokenizers.Tokenizer.from_file(str(tokenizer))
    end = loaded.token_to_id("<|endoftext|>")
    assert end is not None
    batches = ([[*e.ids, end] for e in loaded.encode_batch_fast(texts)] for texts in _text_batches(corpus))
    _write_plainly(prefix, batches)


def datatrove_megatron(corpus: Path, tokenizer: Path, prefix: Path, workers: int) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import MegatronDocumentTokenizer

    # It spreads files, not parts of them: give it as many as it has workers.
    folder = prefix.with_name(f"{prefix.name}-parts")
    folder.mkdir()
    lines = corpus.read_bytes().splitlines(keepends=True)
    for part in range(workers):
        share = lines[len(lines) * part // workers : len(lines) * (part + 1) // workers]
        (folder / f"{part}.jsonl").write_bytes(b"".join(share))
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(str(folder)),
            MegatronDocumentTokenizer(
                output_folder=str(prefix.with_name(f"{prefix.name}-out")),
                tokenizer_name_or_path=str(tokenizer),
                eos_token="<|endoftext|>",
            ),
        ],
        tasks=workers,
        workers=workers,
        logging_dir=str(prefix.with_name(f"{prefix.name}-logs")),
    ).run()


def _text_batches(corpus: Path) -> Iterator[list[str]]:
    with open(corpus, "rb") as file:
        while lines := file.readlines(1 << 22):
            yield [json.loads(line)["text"] for line in lines]


def _write_plainly(prefix: Path, batches: Iterator[list[list[int]]]) -> None:
    import numpy as np
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(VOCAB_SIZE))
    for batch in batches:
        for ids in batch:
            builder.add_document(np.array(ids), [len(ids)])
    builder.finalize(f"{prefix}.idx")


PLAIN: dict[str, Callable[[Path, Path, Path, int], None]] = {
    function.__name__: function
    for function in (megatron_loop, sentencepiece_batches, hugging_face_batches, datatrove_megatron)
}


def import_for(function: str) -> None:
    """What a method needs, so that it is there when its time begins."""
    names = {
        "megatron_loop": ("megatron.core.datasets.indexed_dataset", "sentencepiece"),
        "sentencepiece_batches": ("megatron.core.datasets.indexed_dataset", "sentencepiece"),
        "hugging_face_batches": ("megatron.core.datasets.indexed_dataset", "tokenizers"),
        "datatrove_megatron": (
            "datatrove.pipeline.tokens",
            "datatrove.executor",
            "datatrove.pipeline.readers",
        ),
    }[function]
    for name in names:
        importlib.import_module(name)


def phd(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "data_tools", *map(str, arguments)]


def plain(name: str, python: str = sys.executable) -> Callable[..., list[str]]:
    def command(corpus: Path, tokenizer: Path, prefix: Path, workers: int) -> list[str]:
        return [python, __file__, SEPARATE, name, str(corpus), str(tokenizer), str(prefix), str(workers)]

    return command


def our_tool(*more: str) -> Callable[..., list[str]]:
    def command(corpus: Path, tokenizer: Path, prefix: Path, workers: int) -> list[str]:
        return phd(
            "tokenize", "--input", corpus, "--tokenizer-model", tokenizer, "--output-prefix", prefix,
            "--append-eod", "--workers", workers, *more,
        )  # fmt: skip

    return command


def run(command: list[str]) -> tuple[float, int]:
    """Wall seconds of a command and the largest resident set of one of its processes, bytes."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", WATCH, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    output, errors = process.communicate()
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)} failed:\n{errors[-3000:]}")
    return seconds, int(output.rsplit("peak_kb=", 1)[1]) * 1024


# The system tells the largest of a process's descendants that have ended: each method gets its own parent.
WATCH = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode
print("peak_kb=%d" % resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


def write_corpus(path: Path, megabytes: float) -> int:
    """Python source of this environment as jsonl; returns its bytes."""
    files = sorted(
        {file.resolve() for folder in sys.path if "python" in folder for file in Path(folder).rglob("*.py")}
    )
    size = 0
    with open(path, "w", encoding="utf-8") as out:
        for file in files:
            try:
                text = file.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue
            # The other methods take a control token that a text spells for the token itself: other ids.
            if text and "<|endoftext|>" not in text:
                size += out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            if size >= megabytes * 1e6:
                break
    return path.stat().st_size


def train_byte_level(corpus: Path, path: Path) -> None:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = next(_text_batches(corpus))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))


def measure(methods: dict, corpus: Path, tokenizer: Path, folder: Path, rounds: int) -> dict:
    """Run all methods in turn, ``rounds`` times; their files must be the same.

    Args:
        methods: name -> (function that makes the command, workers).
    """
    results: dict[str, dict] = {
        name: {"seconds": [], "peak_bytes": 0, "workers": w} for name, (_, w) in methods.items()
    }
    reference: bytes | None = None
    for turn in range(rounds):
        for name, (command, workers) in methods.items():
            tell(f"{name}, round {turn + 1} of {rounds}")
            prefix = folder / "out"
            seconds, peak = run(command(corpus, tokenizer, prefix, workers))
            results[name]["seconds"].append(seconds)
            if (told := folder / "out.seconds").exists():
                results[name].setdefault("seconds_without_imports", []).append(float(told.read_text()))
            results[name]["peak_bytes"] = max(peak, results[name]["peak_bytes"])
            content = written_ids(prefix)
            reference = reference or content
            results[name]["same_ids"] = content == reference
            for leftover in folder.glob("out*"):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    size = corpus.stat().st_size
    for result in results.values():
        result["median"] = statistics.median(result["seconds"])
        result["megabytes_per_second"] = size / 1e6 / result["median"]
    return results


def compare(corpus: Path, folder: Path, workers: int, rounds: int, datatrove_python: str) -> dict:
    """All methods of both tokenizers, and the ratios that are aimed at."""
    sentence_piece = {
        "phd": (our_tool(), workers),
        "phd, 1 worker": (our_tool(), 1),
        "phd --no-fast": (our_tool("--no-fast"), workers),
        "Megatron's loop": (plain("megatron_loop"), workers),
        "SentencePiece batches": (plain("sentencepiece_batches"), workers),
    }
    hugging_face = {
        "phd": (our_tool(), workers),
        "tokenizers batches": (plain("hugging_face_batches"), workers),
    }
    check = [datatrove_python, "-c", "import datatrove.pipeline.tokens"]
    has_datatrove = not subprocess.run(check, capture_output=True).returncode
    if has_datatrove:
        hugging_face["datatrove"] = (plain("datatrove_megatron", datatrove_python), workers)
    report: dict[str, Any] = {
        "sentencepiece": measure(sentence_piece, corpus, folder / "spm.model", folder, rounds),
        "hugging_face": measure(hugging_face, corpus, folder / "tokenizer.json", folder, rounds),
        "datatrove": "measured" if has_datatrove else f"not installed for {datatrove_python}",
    }
    ours, loop = report["sentencepiece"]["phd"], report["sentencepiece"]["Megatron's loop"]
    report["times_megatrons_loop"] = loop["median"] / ours["median"]
    report["times_megatrons_loop_without_its_imports"] = (
        statistics.median(loop["seconds_without_imports"]) / ours["median"]
    )
    report["scaling"] = report["sentencepiece"]["phd, 1 worker"]["median"] / ours["median"]
    return report


def written_ids(prefix: Path) -> bytes:
    """The .bin, or datatrove's, one a task, in order."""
    folder = prefix.with_name(f"{prefix.name}-out")
    files = sorted(folder.rglob("*.bin")) if folder.is_dir() else [Path(f"{prefix}.bin")]
    return b"".join(file.read_bytes() for file in files)


def measure_large(corpus: Path, tokenizer: Path, folder: Path) -> dict:
    """A 2 GB jsonl, its merge, and one document of 500 MB."""
    lines = corpus.read_bytes()
    large = folder / "large.jsonl"
    with open(large, "wb") as out:
        while out.tell() < 2e9:
            out.write(lines)
    results: dict[str, Any] = {"bytes": large.stat().st_size, "halves": {}}
    # Two ranks share it, so that the merge comes as a step of its own; one has two workers, the other one.
    for rank, workers in ((0, 2), (1, 1)):
        tell(f"1 GB, {workers} workers")
        command = our_tool("--rank", str(rank), "--world-size", "2")
        seconds, peak = run(command(large, tokenizer, folder / "big", workers))
        results["halves"][f"{workers} workers"] = {"seconds": seconds, "peak_bytes": peak}
    results["scaling"] = results["halves"]["1 workers"]["seconds"] / results["halves"]["2 workers"]["seconds"]
    tell("merge")
    results["merge_seconds"], results["merge_peak_bytes"] = run(
        phd("merge", folder / "big.units", "--output-prefix", folder / "big")
    )
    results["bin_bytes"] = (folder / "big.bin").stat().st_size
    start = time.perf_counter()
    shutil.copyfile(folder / "big.bin", folder / "copy.bin")
    os.sync()
    results["copy_seconds"] = time.perf_counter() - start
    for file in (large, *folder.glob("big*"), folder / "copy.bin"):
        shutil.rmtree(file) if file.is_dir() else file.unlink()

    tell("one document of 500 MB")
    text = "".join(json.loads(line)["text"] for line in lines.splitlines())
    one = folder / "one.jsonl"
    with open(one, "w", encoding="utf-8") as out:
        out.write(json.dumps({"text": text * (int(5e8 // len(text)) + 1)}, ensure_ascii=False) + "\n")
    results["one_document_bytes"] = one.stat().st_size
    results["one_document_seconds"], results["one_document_peak_bytes"] = run(
        our_tool()(one, tokenizer, folder / "one", 1)
    )
    for file in folder.glob("one*"):
        file.unlink()
    return results


def tell(progress: str) -> None:
    print(time.strftime("%H:%M:%S"), progress, file=sys.stderr, flush=True)


def show(title: str, results: dict, base: str) -> None:
    table = Table(
        "method", "workers", "MB/s", f"times {base}", "largest process, MB", "same ids", title=title
    )
    for name, result in results.items():
        table.add_row(
            name,
            str(result["workers"]),
            f"{result['megabytes_per_second']:.1f}",
            f"{results[base]['median'] / result['median']:.2f}",
            f"{result['peak_bytes'] / 1e6:.0f}",
            "yes" if result["same_ids"] else "NO",
        )
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokenizing end to end, beside what it replaces.")
    parser.add_argument("--megabytes", type=float, default=120.0, help="size of the corpus")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--large", action="store_true", help="2 GB, the merge, and one document of 500 MB instead"
    )
    parser.add_argument(
        "--datatrove-python", default=sys.executable, help="an interpreter that has datatrove"
    )
    parser.add_argument("--output", type=Path, help=f"default: {RESULTS.name} beside this file")
    options = parser.parse_args()
    workers = options.workers
    output = options.output or RESULTS.with_stem(RESULTS.stem + ("_large" if options.large else ""))

    with tempfile.TemporaryDirectory(prefix="phd-tokenize-") as name:
        folder = Path(name)
        corpus = folder / "corpus.jsonl"
        size = write_corpus(corpus, options.megabytes)
        tell(f"corpus of {size / 1e6:.1f} MB; training two tokenizers")
        train = ["train-tokenizer", "--input", corpus, "--vocab-size", VOCAB_SIZE, "--max-sentences", 150_000]
        run(phd(*train, "--output-prefix", folder / "spm"))
        train_byte_level(corpus, folder / "tokenizer.json")
        report: dict[str, Any] = {
            # a Python elsewhere on this machine is nobody else's
            "command": shlex.join(
                ["python", *(Path(word).name if word.startswith("/") else word for word in sys.argv)]
            ),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {
                "cores": os.cpu_count(),
                "system": platform.platform(),
                "python": platform.python_version(),
                "load_average_at_start": os.getloadavg()[0],
            },
            "corpus_bytes": size,
            "documents": corpus.read_bytes().count(b"\n"),
        }
        if options.large:
            report |= measure_large(corpus, folder / "spm.model", folder)
        else:
            report |= compare(corpus, folder, workers, options.rounds, options.datatrove_python)
    part = output.with_name(output.name + ".part")
    part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    part.replace(output)
    if options.large:
        print(json.dumps(report, indent=1))
    else:
        show("SentencePiece BPE", report["sentencepiece"], "Megatron's loop")
        show("Byte-level BPE", report["hugging_face"], "tokenizers batches")
    print(f"Written to {output}")


if __name__ == "__main__":
    if sys.argv[1:2] == [SEPARATE]:
        function, corpus, tokenizer, prefix, count = sys.argv[2:]
        import_for(function)
        start = time.perf_counter()
        PLAIN[function](Path(corpus), Path(tokenizer), Path(prefix), int(count))
        Path(f"{prefix}.seconds").write_text(str(time.perf_counter() - start))
    else:
        main()
