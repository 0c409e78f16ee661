"""Look into a PREFIX.bin/.idx: counts, lengths, samples; and whether the two files belong together."""

from pathlib import Path

import numpy as np
import sentencepiece

BAR_WIDTH = 40


def inspect(prefix: Path, *, tokenizer_model: Path | None = None, samples: int = 2) -> None:
    """Print what Megatron will read.

    Raises:
        FileNotFoundError: the .bin or .idx is missing.
        ValueError: the .bin is shorter or longer than the .idx says, or an id is beyond the tokenizer's.
    """
    for end in (".bin", ".idx"):
        if not (file := prefix.with_name(f"{prefix.name}{end}")).is_file():
            raise FileNotFoundError(f"{file}: there is no such file (give the path without .bin or .idx)")
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(prefix))
    lengths = dataset.sequence_lengths
    tokens, dtype = int(lengths.sum(dtype=np.int64)), np.dtype(dataset.index.dtype)
    size = prefix.with_name(f"{prefix.name}.bin").stat().st_size
    if size != tokens * dtype.itemsize:
        raise ValueError(f"{prefix}.bin holds {size} bytes, {prefix}.idx speaks of {tokens * dtype.itemsize}")
    print(f"{prefix}: {len(dataset.document_indices) - 1:,} documents, {tokens:,} tokens, {dtype.name}")
    counts, edges = np.histogram(np.log2(lengths.clip(min=1)), bins=10)
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        bar = "#" * round(BAR_WIDTH * count / counts.max())
        print(f"{2**low:9.0f} to {2**high:9.0f} tokens  {count:9,}  {bar}")
    processor = tokenizer_model and sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    for index in range(min(samples, len(lengths))):
        ids = dataset[index][:64].tolist()
        if processor and max(ids) >= len(processor):
            raise ValueError(
                f"document {index} holds id {max(ids)}, {tokenizer_model} has {len(processor)} pieces"
            )
        print(f"document {index}: {processor.decode(ids)!r}" if processor else f"document {index}: {ids}")
