"""Train a SentencePiece BPE tokenizer that gives every text back unchanged."""

import io
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece

from data_tools.documents import check_inputs, parse, read_batches
from data_tools.files import append_suffix, identity, sha256, write_bytes, write_json
from data_tools.progress import byte_progress

# Documents are cut into lines and long lines into pieces: SentencePiece leaves out what is over its limit.
MAX_SENTENCE_CHARACTERS = 4096
MAX_SENTENCE_BYTES = 4 * MAX_SENTENCE_CHARACTERS
CONTROL_TOKENS = {"unk": 0, "bos": 1, "eos": 2}


def train_tokenizer(
    paths: Sequence[Path],
    output_prefix: Path,
    *,
    vocab_size: int,
    seed: int = 0,
    max_sentences: int = 1_000_000,
    text_field: str = "text",
    document_separator: str | None = None,
) -> None:
    """Write ``output_prefix``.model, .vocab and a card .model.json that says how they were made.

    BPE with byte fallback, digits split, no normalisation and whitespace kept: decoding gives the text back
    (but for U+2581, SentencePiece's own mark of a space, which comes back as one). EOD, as Megatron's
    ``SentencePieceTokenizer`` calls it, is the control token ``</s>`` (id 2). Control tokens are never made
    from text, so a document that spells ``</s>`` is safe.

    Raises:
        ValueError: a bad record, no text, or a ``vocab_size`` that the text cannot fill.
        FileNotFoundError: an input is missing.
    """
    check_inputs(paths, document_separator)
    if vocab_size < 256 + len(CONTROL_TOKENS) + 1:
        raise ValueError(f"--vocab-size {vocab_size} leaves no room beside 256 bytes and 3 control tokens")
    if max_sentences < 1:
        raise ValueError(f"--max-sentences must be at least 1, got {max_sentences}")
    sentences = _sample(_sentences(paths, text_field, document_separator), max_sentences, seed)
    if not sentences:
        raise ValueError("--input: there is no text in these files")
    print(f"training on {len(sentences):,} lines", flush=True)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            character_coverage=0.9999,
            max_sentence_length=MAX_SENTENCE_BYTES,
            unk_id=CONTROL_TOKENS["unk"],
            bos_id=CONTROL_TOKENS["bos"],
            eos_id=CONTROL_TOKENS["eos"],
            pad_id=-1,
            minloglevel=1,
        )
    except RuntimeError as error:
        raise ValueError(f"SentencePiece refused --vocab-size {vocab_size}: {error}") from error
    output_prefix.parent.mkdir(parents=True, exist_ok=True)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = "".join(f"{processor.id_to_piece(i)}\t{processor.get_score(i)}\n" for i in range(len(processor)))
    model_file = append_suffix(output_prefix, ".model")
    write_bytes(append_suffix(output_prefix, ".vocab"), pieces.encode())
    write_bytes(model_file, model.getvalue())
    card = {
        "kind": "SentencePiece BPE, byte fallback, digits split, identity normalisation, whitespace kept",
        "vocab_size": len(processor),
        "control_tokens": CONTROL_TOKENS,
        "sha256": sha256(model_file),
        "sentencepiece": sentencepiece.__version__,
        "seed": seed,
        "sentences": len(sentences),
        "inputs": [identity(path) for path in paths],
    }
    write_json(append_suffix(model_file, ".json"), card)
    print(f"{model_file}: {len(processor):,} pieces")


def _sentences(paths: Sequence[Path], text_field: str, separator: str | None) -> Iterator[str]:
    with byte_progress() as progress:
        total = sum(path.stat().st_size for path in paths)
        task = progress.add_task("read", total=total, note="")
        for batch in read_batches(paths, separator):
            for text in parse(batch, text_field):
                for line in text.splitlines(keepends=True):
                    if "\0" not in line:  # SentencePiece keeps this character to itself in training
                        for start in range(0, len(line), MAX_SENTENCE_CHARACTERS):
                            yield line[start : start + MAX_SENTENCE_CHARACTERS]
            progress.update(task, advance=sum(map(len, batch.records)))
        progress.update(task, completed=total)


def _sample(lines: Iterator[str], count: int, seed: int) -> list[str]:
    """Up to ``count`` lines, each as likely as the other (reservoir sampling)."""
    generator = random.Random(seed)
    kept: list[str] = []
    for index, line in enumerate(lines):
        if index < count:
            kept.append(line)
        elif (place := generator.randrange(index + 1)) < count:
            kept[place] = line
    return kept
