"""Train a SentencePiece tokenizer that gives every text back unchanged."""

import hashlib
import io
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from data_tools.cards import refuse_difference
from data_tools.documents import EMPTY
from data_tools.files import append_suffix, sha256, write_bytes, write_json
from data_tools.inputs import Source, find_sources, named_as_before
from data_tools.numbers import check_at_least
from data_tools.places import check_prefix, refuse_over_inputs
from data_tools.progress import byte_progress
from data_tools.records import Format, read_batches

# Documents are cut into lines and long lines into pieces: SentencePiece leaves out what is over its limit.
MAX_SENTENCE_CHARACTERS = 4096
MAX_SENTENCE_BYTES = 4 * MAX_SENTENCE_CHARACTERS
BATCH_BYTES = 1 << 22
UNK, BOS, EOS = 0, 1, 2
MODEL_TYPES = ("bpe", "unigram")
MOST_PIECES = 2**31 - 1
"""Ids are int32 in the data and in SentencePiece."""


def train_tokenizer(
    inputs: Sequence[str | Path],
    output_prefix: Path,
    *,
    vocab_size: int,
    model_type: str = "bpe",
    control_tokens: Sequence[str] = (),
    seed: int = 0,
    sample_rate: float = 1.0,
    max_sentences: int = 1_000_000,
    form: Format | None = None,
    stop_on_bad_record: bool = True,
    empty_is_bad: bool = False,
) -> None:
    """Write ``output_prefix``.model, .vocab and a card .model.json that says how they were made.

    Byte fallback, digits split, no normalisation and whitespace kept: decoding gives the text back (but for
    U+2581, SentencePiece's own mark of a space, which comes back as one). EOD, as Megatron's
    ``SentencePieceTokenizer`` calls it, is the control token ``</s>`` (id 2). Control tokens are never made
    from text, so a document that spells ``</s>`` is safe. The same arguments and inputs give the same model;
    where it lies already, nothing is done.

    Args:
        inputs: files, folders, patterns and URLs.
        output_prefix: of the files to write.
        vocab_size: pieces, control tokens and the 256 bytes included.
        model_type: one of ``MODEL_TYPES``.
        control_tokens: more of them, for later use; ids from 3.
        seed: for the samples.
        sample_rate: share of the documents to take.
        max_sentences: lines to take from these, all equally likely: bounds the memory.
        form: what a document looks like.
        stop_on_bad_record: otherwise they are left out, and counted.
        empty_is_bad: an empty text is a bad record; otherwise it is passed over and counted.

    Raises:
        ValueError: a bad record, no text, a ``vocab_size`` that the text cannot fill, or another model in the
            place.
        FileNotFoundError: an input is missing.
    """
    if model_type not in MODEL_TYPES:
        raise ValueError(f"--model-type must be one of {', '.join(MODEL_TYPES)}, got {model_type}")
    if len(set(control_tokens)) < len(control_tokens) or set(control_tokens) & {"<unk>", "<s>", "</s>"}:
        raise ValueError("--control-tokens: each one once, and <unk>, <s> and </s> are there already")
    if not all(token.strip() for token in control_tokens):
        raise ValueError("--control-tokens: one of them is empty")
    check_at_least("--vocab-size", vocab_size, most=MOST_PIECES)
    if vocab_size < 256 + EOS + 1 + len(control_tokens) + 1:
        raise ValueError(f"--vocab-size {vocab_size} leaves no room beside 256 bytes and the control tokens")
    check_at_least("--max-sentences", max_sentences)
    if not 0 < sample_rate <= 1:
        raise ValueError(f"--sample-rate must be above 0 and at most 1, got {sample_rate}")
    check_prefix(output_prefix, (".model", ".vocab"), "--output-prefix")
    form, sources = form or Format(), find_sources(inputs)
    model_file = append_suffix(output_prefix, ".model")
    written = [model_file, append_suffix(output_prefix, ".vocab"), append_suffix(model_file, ".json")]
    refuse_over_inputs(written, [source.path for source in sources], "--output-prefix")
    sources = named_as_before(sources, _inputs_before(model_file))
    made_from = {
        "inputs": [source.identity() for source in sources],
        "vocab_size": vocab_size,
        "model_type": model_type,
        "control_tokens": list(control_tokens),
        "seed": seed,
        "sample_rate": sample_rate,
        "max_sentences": max_sentences,
        "text_field": form.text_field,
        "document_separator": form.document_separator,
        "stop_on_bad_record": stop_on_bad_record,
    }
    if model_file.exists():
        _refuse_other(model_file, made_from, written)
        print(f"{model_file}: already done")
        return
    _refuse_others(written)
    output_prefix.parent.mkdir(parents=True, exist_ok=True)  # or it would fail after all the work
    documents = _Documents(sources, form, seed, sample_rate, stop_on_bad_record, empty_is_bad)
    sentences = _sample(_lines(documents), max_sentences, seed)
    if not sentences:
        raise ValueError("--input: there is no text in these files")
    left_out = f", {documents.empty:,} empty texts passed over" if documents.empty else ""
    left_out += f", {documents.rejected:,} bad records left out" if documents.rejected else ""
    print(f"training on {len(sentences):,} lines of {documents.taken:,} documents{left_out}", flush=True)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            character_coverage=0.9999,
            max_sentence_length=MAX_SENTENCE_BYTES,
            control_symbols=list(control_tokens),
            unk_id=UNK,
            bos_id=BOS,
            eos_id=EOS,
            pad_id=-1,
            minloglevel=1,
        )
    except RuntimeError as error:
        raise ValueError(f"SentencePiece refused --vocab-size {vocab_size}: {error}") from error
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = "".join(f"{processor.id_to_piece(i)}\t{processor.get_score(i)}\n" for i in range(len(processor)))
    card = {
        "kind": f"SentencePiece {model_type}, byte fallback, digits split, identity "
        "normalisation, whitespace kept",
        "vocab_size": len(processor),
        "control_tokens": {
            name: processor.piece_to_id(name) for name in ("<unk>", "<s>", "</s>", *control_tokens)
        },
        "sha256": hashlib.sha256(model.getvalue()).hexdigest(),
        "sentencepiece": sentencepiece.__version__,
        "documents": documents.taken,
        "sentences": len(sentences),
        "bad_records": documents.rejected,
        "empty_texts": documents.empty,
        "made_from": made_from,
    }
    # The card comes first, which tells whose the others are; the model comes last: it has its card, or is not
    # ours.
    write_json(append_suffix(model_file, ".json"), card)
    write_bytes(append_suffix(output_prefix, ".vocab"), pieces.encode())
    write_bytes(model_file, model.getvalue())
    print(f"{model_file}: {len(processor):,} pieces")


def _read_card(model_file: Path) -> dict[str, Any] | None:
    """What MODEL.json tells of a model that ``train_tokenizer`` made, or was about to put there."""
    try:
        card = json.loads(append_suffix(model_file, ".json").read_text(encoding="utf-8"))
        return card if card["made_from"]["inputs"] and card["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _inputs_before(model_file: Path) -> list[dict[str, Any]]:
    return (_read_card(model_file) or {"made_from": {"inputs": []}})["made_from"]["inputs"]


def _refuse_other(model_file: Path, made_from: dict[str, Any], written: Sequence[Path]) -> None:
    """Raise ValueError if the model is not, or cannot be told to be, what ``made_from`` gives."""
    card = _read_card(model_file)
    if card is None or card["sha256"] != sha256(model_file):
        raise ValueError(
            f"{model_file} is there already and no card beside it tells what it was made from: choose "
            "another --output-prefix, or move it away"
        )
    refuse_difference(model_file, card["made_from"], made_from, ", ".join(map(str, written)))


def _refuse_others(written: Sequence[Path]) -> None:
    """Raise ValueError if a file is in the way, unless a run left it that was stopped before its model."""
    if _read_card(written[0]) is not None:
        return
    for file in written:
        if file.exists():
            raise ValueError(
                f"{file} is there already and no card tells that it may be replaced: choose another "
                "--output-prefix, or move it away"
            )


class _Documents:
    """The sampled documents of all sources; counts what it takes and leaves out."""

    def __init__(
        self,
        sources: Sequence[Source],
        form: Format,
        seed: int,
        rate: float,
        stop_on_bad_record: bool,
        empty_is_bad: bool,
    ) -> None:
        self.sources, self.form, self.seed, self.rate = sources, form, seed, rate
        self.stop, self.empty_is_bad = stop_on_bad_record, empty_is_bad
        self.taken = self.rejected = self.empty = 0

    def __iter__(self) -> Iterator[str]:
        generator = random.Random(self.seed)
        with byte_progress() as progress:
            task = progress.add_task("read", total=sum(source.size for source in self.sources), note="")
            done = 0
            for source in self.sources:
                for batch in read_batches(source, 0, None, self.form, BATCH_BYTES):
                    bad = [each for each in batch.rejects if each.kind != EMPTY or self.empty_is_bad]
                    if bad and self.stop:
                        raise ValueError(
                            f"{source.path}, line {bad[0].line}: {bad[0].kind}: {bad[0].detail}; mend it, "
                            "or have such records left out and counted: --on-bad-record skip"
                        )
                    self.rejected += len(bad)
                    self.empty += len(batch.rejects) - len(bad)
                    for text in batch.texts:
                        if self.rate == 1 or generator.random() < self.rate:
                            self.taken += 1
                            yield text
                    if source.compression is None and source.kind != "parquet":
                        progress.update(task, advance=batch.size)
                done += source.size
                progress.update(task, completed=done)


def _lines(documents: _Documents) -> Iterator[str]:
    for text in documents:
        for line in text.splitlines(keepends=True):
            if "\0" not in line:  # SentencePiece keeps this character to itself in training
                for start in range(0, len(line), MAX_SENTENCE_CHARACTERS):
                    yield line[start : start + MAX_SENTENCE_CHARACTERS]


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
