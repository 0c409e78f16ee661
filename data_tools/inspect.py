"""Look into a PREFIX.bin/.idx: counts, lengths, samples."""

import io
from pathlib import Path

import numpy as np

from data_tools.encoders import load_encoder
from data_tools.files import write_bytes
from data_tools.indexed import open_indexed
from data_tools.numbers import check_at_least
from data_tools.places import data_set_files, refuse_over_inputs

BAR_WIDTH = 40
SAMPLE_TOKENS = 64


def inspect(
    prefix: Path,
    *,
    tokenizer_model: Path | None = None,
    tiktoken_pattern: str | None = None,
    samples: int = 2,
    histogram: Path | None = None,
) -> None:
    """Print what Megatron will read; ``samples`` documents as text, or as ids where no tokenizer is given.

    Args:
        prefix: path without .bin or .idx.
        tokenizer_model: see ``encoders.load_encoder``, also for ``tiktoken_pattern``.
        samples: how many, spread evenly over the data set.
        histogram: .png to draw the lengths of documents to.

    Raises:
        FileNotFoundError: the .bin, .idx or tokenizer is missing.
        ValueError: the files are not whole, or a sample holds an id beyond the tokenizer's.
    """
    if histogram is not None:
        if histogram.suffix.lower() != ".png":
            raise ValueError(f"--histogram {histogram}: it is a picture: name a file that ends with .png")
        refuse_over_inputs([histogram], data_set_files(prefix), "--histogram")
    check_at_least("--samples", samples, least=0)
    indexed = open_indexed(prefix)
    encoder = load_encoder(tokenizer_model, fast=False, pattern=tiktoken_pattern) if tokenizer_model else None
    lengths = indexed.document_lengths()
    print(f"{prefix}: {indexed.documents:,} documents, {indexed.tokens:,} tokens, {indexed.dtype.name}")
    edges = 2 ** np.arange(0, max(2, int(lengths.max(initial=1)).bit_length() + 1))
    counts, _ = np.histogram(lengths.clip(min=1), bins=edges)
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        if count:
            bar = "#" * max(1, round(BAR_WIDTH * count / counts.max()))
            print(f"{low:11,} to {high - 1:11,} tokens  {count:12,}  {bar}")
    if histogram is not None:
        draw_lengths(prefix.name, lengths, histogram)
        print(f"lengths drawn: {histogram}")
    for index in np.linspace(0, indexed.documents - 1, min(samples, indexed.documents)).astype(int).tolist():
        ids = indexed.read(int(indexed.document_indices[index]), SAMPLE_TOKENS).tolist()
        if encoder and max(ids, default=0) >= encoder.vocab_size:
            raise ValueError(
                f"document {index} holds id {max(ids)}, {tokenizer_model} has {encoder.vocab_size}: "
                "give the --tokenizer-model that the data set was made with"
            )
        print(f"document {index}: {encoder.decode(ids)!r}" if encoder else f"document {index}: {ids}")


def draw_lengths(name: str, lengths: np.ndarray, path: Path) -> None:
    """A picture of how many documents, and how many tokens, are in documents of which length.

    Args:
        name: of the data set.
        lengths: tokens of each document.
        path: of the .png.
    """
    from matplotlib.figure import Figure

    title = name.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")  # which begins a formula
    bins = np.geomspace(1, max(2, int(lengths.max(initial=1)) + 1), 60).tolist()
    figure = Figure(figsize=(8, 4), layout="constrained")
    documents = figure.add_subplot()
    documents.hist(lengths.clip(min=1), bins=bins, color="tab:blue", alpha=0.6, label="documents")
    documents.set(xscale="log", xlabel="tokens in a document", ylabel="documents", title=title)
    tokens = documents.twinx()
    tokens.hist(
        lengths.clip(min=1), bins=bins, weights=lengths, histtype="step", color="tab:red", label="tokens"
    )
    tokens.set_ylabel("tokens")
    figure.legend(loc="outside lower center", ncols=2)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content.getvalue())
