"""Look into a PREFIX.bin/.idx: counts, lengths, samples."""

from pathlib import Path

import numpy as np

from data_tools.encode import load_tokenizer
from data_tools.verify import open_whole

BAR_WIDTH = 40
SAMPLE_TOKENS = 64


def inspect(prefix: Path, *, tokenizer_model: Path | None = None, samples: int = 2) -> None:
    """Print what Megatron will read; ``samples`` sequences as text, or as ids where no tokenizer is given.

    Raises:
        FileNotFoundError: the .bin, .idx or tokenizer is missing.
        ValueError: the files are not whole, or a sample holds an id beyond the tokenizer's.
    """
    dataset = open_whole(prefix)
    processor = load_tokenizer(tokenizer_model) if tokenizer_model else None
    lengths = dataset.sequence_lengths
    tokens, dtype = int(lengths.sum(dtype=np.int64)), np.dtype(dataset.index.dtype)
    print(f"{prefix}: {len(dataset.document_indices) - 1:,} documents, {tokens:,} tokens, {dtype.name}")
    counts, edges = np.histogram(np.log2(lengths.clip(min=1)), bins=10)
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        bar = "#" * round(BAR_WIDTH * count / max(1, counts.max()))
        print(f"{2**low:9.0f} to {2**high:9.0f} tokens  {count:9,}  {bar}")
    for index in range(min(samples, len(lengths))):
        ids = dataset.get(index, length=min(SAMPLE_TOKENS, int(lengths[index]))).tolist()
        if processor and max(ids, default=0) >= len(processor):
            raise ValueError(
                f"document {index} holds id {max(ids)}, {tokenizer_model} has {len(processor)} pieces: "
                "give the --tokenizer-model that the data set was made with"
            )
        print(f"document {index}: {processor.decode(ids)!r}" if processor else f"document {index}: {ids}")
