"""`make results`: the tables of README and docs/results.md, from the JSON files in benchmarks/.

    python -m tools.tables

A table stands between <!-- table: NAME --> and <!-- /table -->; what stands there is replaced. Tables hold
numbers of files and formulas alone, so that none of them can go stale: a test makes them again.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from phd.rules.costs import Shape, dense_products
from phd.rules.variant import Variant
from phd.run.files import write_text

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
SLOT = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)
SIZES = {"550M": (16, 1536, 4096, 16, 4), "1.2B": (16, 2048, 8192, 32, 8)}
"""Of examples/sizes: layers, hidden, FFN, heads, groups."""


def main() -> None:
    for page in PAGES:
        write_text(page, filled(page.read_text(encoding="utf-8")))
        print(page.relative_to(ROOT))


def filled(text: str) -> str:
    """A page with its tables made anew.

    Raises:
        KeyError: a table of which nothing is known here.
    """
    return SLOT.sub(lambda match: f"{match[1]}{table(*TABLES[match[2]]())}{match[3]}", text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """As Markdown, every line ended."""

    def line(cells: Sequence[str]) -> str:
        return f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|\n"

    return line(head) + f"{'|---' * len(head)}|\n" + "".join(map(line, rows))


def measured(name: str) -> Any:
    """One of the JSON files."""
    return json.loads((ROOT / "benchmarks" / name).read_text(encoding="utf-8"))


type Table = tuple[Sequence[str], list[list[str]]]
"""Head, and rows."""


def headline() -> Table:
    """What is won, of README."""
    attention = {row["K"]: row for row in measured("attention.json")["results"]}
    over_floor = ", ".join(f"{attention[copies]['phd_times_floor']:.2f}" for copies in (2, 3, 5))
    dense = attention[5]["methods"]["dense mask"]["times_vanilla"]
    prompt = _prefill()[8192, "PHD-CSWA", 16]
    hybrid = measured("longgen.json")["lengths"]["32768"]["longgen-sink"]
    speeds = ", ".join(f"{hybrid[f'{what}_times_as_fast']:.2f}" for what in ("train", "prefill", "decode"))
    means = measured("longgen_needle.json")["means"]
    names = ("longgen-sink", "full attention", "full; sliding window at inference")
    sink, full, window = (f"{means[name][-1]:.0%}" for name in names)
    paper = ", ".join(map(str, measured("longgen.json")["paper"].values()))
    rates = measured("tokenize.json")["sentencepiece"]
    ours, loop = (f"{rates[name]['megabytes_per_second']:.1f}" for name in ("phd", "Megatron's loop"))
    return ["", "here", "beside it"], [
        ["attention, forward and backward, K = 2, 3, 5", f"{over_floor} times its floor of K vanilla calls",
         f"dense mask at K = 5: {dense:.1f} vanilla calls"],
        ["reading a prompt of 8192 tokens, PHD-CSWA, K = 16", f"{prompt['ratio']:.2f} times vanilla",
         f"floor {prompt['floor']:.2f}; the paper on an A100: 1.08"],
        ["KV bytes of the originals", "vanilla's, exactly", "hidden part at most (W-1)(K-1) entries a layer"],
        ["LongGen's hybrid at 32768 tokens: training, prefill, decoding",
         f"{speeds} times as fast as full attention",
         f"the paper, 7B at 131072 on GPUs: {paper}"],
        ["needles found at 4096 tokens by that hybrid", sink,
         f"full attention {full}; sliding window at inference {window}"],
        ["tokenizing, SentencePiece", f"{ours} MB/s", f"Megatron's own loop {loop}, the same ids"],
    ]  # fmt: skip


def demo() -> Table:
    """The walkthrough's three models."""
    runs = measured("demo.json")["runs"]
    head = [f"{runs[0]['parameters'] / 1e6:.1f}M parameters, Shakespeare, seed {runs[0]['seed']}"]
    return [*head, "tokens", "validation loss", "to vanilla", "training FLOPs"], [
        [_demo_name(run), f"{run['tokens'] / 1e6:.2f}M", f"{run['validation_loss']:.4f}",
         "" if run["difference"] is None else f"{run['difference']:+.4f}",
         f"{run['training_flops'] / 1e12:.1f}e12"]
        for run in runs
    ]  # fmt: skip


def _demo_name(run: dict[str, Any]) -> str:
    """The variant, and whether it was trained for longer."""
    label, _, iterations = run["label"].partition(", ")
    return f"{label}, twice the steps" if iterations.startswith("600") else label


def demo_full() -> Table:
    """Differences of two seeds."""
    rows: dict[str, dict[int, str]] = {}
    for run in measured("demo_full.json")["runs"]:
        if run["seed"] != "mean" and run["difference"] is not None:
            rows.setdefault(_demo_name(run), {})[run["seed"]] = f"{run['difference']:+.4f}"
    return ["to vanilla of the same seed", "seed 1", "seed 2"], [
        [name, of_seeds[1], of_seeds[2]] for name, of_seeds in rows.items()
    ]


def reproduction() -> Table:
    """The paper's variants at the scale of a CPU."""
    from phd.compare.paper import REPORTED

    groups = measured("results/comparison.json")["groups"]
    size = f"{groups[0]['parameters'] / 1e6:.1f}M parameters, {groups[0]['tokens'] / 1e6:.1f}M tokens"
    head = [f"{size}, three seeds", "validation loss", "to vanilla, 95% interval", "p"]
    rows = []
    for group in groups:
        difference, cells = group["validation_difference"], ["", "", ""]
        if difference is not None:
            half = (difference["high"] - difference["low"]) / 2
            cells = [f"{difference['mean']:+.4f} ±{half:.4f}", f"{difference['p']:.2f}"]
            cells.append(str(difference["pairs_needed"]))
        reported = REPORTED["1.2B"]
        paper = ""
        if difference is not None and group["label"] in reported:
            paper = f"{reported[group['label']].loss - reported['vanilla'].loss:+.3f} (1.2B)"
        loss = f"{group['validation_loss']['mean']:.4f}"
        rows.append([group["label"], loss, *cells, f"{group['training_flops']:.3g}", paper])
    return [*head, "pairs that would decide it", "training FLOPs", "paper, to vanilla"], rows


def flops() -> Table:
    """Of a training step, to vanilla's, by the formula."""
    rows = []
    for name, (layers, hidden, ffn, heads, groups) in SIZES.items():
        shape = Shape(
            hidden_size=hidden,
            num_attention_heads=heads,
            num_query_groups=groups,
            kv_channels=hidden // heads,
            vocab_size=100_352,
            mlp_products=[dense_products(hidden, ffn, True)] * layers,
        )

        def ratio(copies: int, pruned: bool, shape: Shape = shape) -> str:
            ours = Variant.parse(f"PHD-CSWA-{copies}-16-32").flops_per_token(
                shape, 4096, prune_last_layer=pruned
            )
            return (
                f"{ours / Variant.parse('vanilla').flops_per_token(shape, 4096, prune_last_layer=False):.3f}"
            )

        rows.append([name, *(ratio(copies, True) for copies in (2, 3, 5)),
                     ", ".join(ratio(copies, False) for copies in (2, 3, 5))])  # fmt: skip
    return ["x vanilla", "K = 2", "K = 3", "K = 5", "not pruned: K = 2, 3, 5"], rows


def attention() -> Table:
    """Times vanilla causal flash."""
    rows = []
    for row in measured("attention.json")["results"]:
        if row["K"] == 1:
            continue
        times = [_three(row["methods"][name]["times_vanilla"]) for name in ("phd", "dense mask", "naive")]
        rows.append([str(row["K"]), str(row["K"]), *times, f"{row['phd_times_floor']:.2f}"])
    return ["K", "floor", "PHD", "dense mask", "naive repetition", "PHD over floor"], rows


def _three(value: float) -> str:
    """Three digits."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _prefill() -> dict[tuple[int, str, int], dict[str, Any]]:
    """By prompt, style and copies."""
    return {(row["prompt"], row["style"], row["copies"]): row for row in measured("latency.json")["prefill"]}


def latency() -> Table:
    """Reading a prompt, and a step, to vanilla's."""
    ratios = _prefill()
    steps = {(row["style"], row["copies"]): row for row in measured("latency.json")["decode"]}
    columns = [(2048, "PHD-CSWA"), (8192, "PHD-CSWA"), (2048, "PHD-SWA"), (8192, "PHD-SWA")]
    head = [f"{style.removeprefix('PHD-')}, t = {prompt}" for prompt, style in columns]
    rows = []
    for copies in (2, 4, 8, 16):
        cells = [ratios[prompt, style, copies] for prompt, style in columns]
        rows.append([str(copies), *(f"{cell['ratio']:.2f} (floor {cell['floor']:.2f})" for cell in cells),
                     f"{steps['PHD-CSWA', copies]['ratio']:.2f}"])  # fmt: skip
    return ["K", *head, "a step, CSWA"], rows


def hybrids() -> Table:
    """Times as fast as full attention."""
    report = measured("longgen.json")
    rows = []
    for name in ("longgen-sink", "longgen-block"):
        row = report["lengths"]["32768"][name]
        speeds = (f"{row[f'{what}_times_as_fast']:.2f}" for what in ("train", "prefill", "decode"))
        rows.append([name, *speeds, f"{row['flops_to_full']:.3f}", f"{row['kv_to_full']:.3f}"])
    paper = [*(f"{value:.2f}" for value in report["paper"].values()), "", "0.38"]
    rows.append(["the paper: 7B, 131072 tokens, GPUs", *paper])
    return ["", "training step", "prefill", "decoding", "FLOPs", "KV bytes"], rows


def needles() -> Table:
    """Found, of all depths."""
    report = measured("longgen_needle.json")
    lengths = next(iter(report["grids"].values()))["lengths"]
    head = ["", f"{lengths[0]} tokens", *(f"{length:,}" for length in lengths[1:])]
    return head, [[name, *(f"{mean:.0%}" for mean in means)] for name, means in report["means"].items()]


def tokenizing() -> Table:
    """MB/s of two kinds of tokenizers."""
    report = measured("tokenize.json")

    def rate(kind: str, name: str) -> str:
        return f"{report[kind][name]['megabytes_per_second']:.1f}"

    loop = report["sentencepiece"]["Megatron's loop"]["seconds_without_imports"]
    without = f"{report['corpus_bytes'] / 1e6 * len(loop) / sum(loop):.1f}"
    ours = "**`phd data tokenize`**"
    return ["SentencePiece BPE, 16,000 pieces", "MB/s", "byte-level BPE (tokenizer.json)", "MB/s"], [
        [ours, f"**{rate('sentencepiece', 'phd')}**", ours, f"**{rate('hugging_face', 'phd')}**"],
        ["Megatron's preprocess_data.py loop",
         f"{rate('sentencepiece', "Megatron's loop")} ({without} without its imports)",
         "`tokenizers`, batches in all threads", rate("hugging_face", "tokenizers batches")],
        ["SentencePiece, batches in all threads", rate("sentencepiece", "SentencePiece batches"),
         "datatrove's Megatron tokenizer", rate("hugging_face", "datatrove")],
    ]  # fmt: skip


TABLES: dict[str, Callable[[], Table]] = {
    "headline": headline,
    "demo": demo,
    "demo-full": demo_full,
    "reproduction": reproduction,
    "flops": flops,
    "attention": attention,
    "latency": latency,
    "hybrids": hybrids,
    "needles": needles,
    "tokenizing": tokenizing,
}


if __name__ == "__main__":
    main()
