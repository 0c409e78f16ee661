"""A Hugging Face tokenizer that gives the same ids as the one a model was trained with."""

import os
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from phd.hf.foreign import check_folder

SPACE = "\u2581"
"""SentencePiece's symbol for a space."""
NEVER = -1e4
"""Log-probability of a piece that texts must not use: any other segmentation is likelier."""

_SAMPLES = (
    "It was the best of times, it was the worst of times.",
    "  two  spaces, a tab\t, 1234567890 digits\nand\r\nlines\n\n",
    "def f(x: int) -> int:\n    return x ** 2  # caf\u00e9 na\u00efve",
    "\u65e5\u672c\u8a9e \U0001f600\u200d\u2708\ufe0f",
    "<s>control</s> <unk> <0x41> aaaaaaaaaaaaaaaaa abababababab",
    " ",
    "\u2581 sign",
)


def load_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """A tokenizer for transformers from a SentencePiece .model, a tokenizer.json, or a folder that
    AutoTokenizer reads.

    Raises:
        ValueError: it cannot be read, or would not give the same ids as SentencePiece.
    """
    if file.is_dir():
        check_folder(file)
        tokenizer = AutoTokenizer.from_pretrained(str(file))
    elif file.suffix == ".json":
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file))
        ends = [name for name in ("</s>", "<|endoftext|>", "<eos>") if name in tokenizer.get_vocab()]
        if ends:
            tokenizer.eos_token = ends[0]
    elif file.suffix == ".model":
        tokenizer = from_sentencepiece(file)
    else:
        raise ValueError(f"{file}: a tokenizer is a SentencePiece .model, a tokenizer.json or a folder")
    if tokenizer.eos_token is not None and tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # to batch prompts of unequal lengths
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"  # the second is what is saved
    return tokenizer


def puts_bos_in_front(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself begins a text with BOS. Where it does not, a text begins after the end of
    another, as in training, and BOS is a token that the model may never have seen.
    """
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def from_sentencepiece(file: Path) -> PreTrainedTokenizerFast:
    """The same pieces, scores and rules in Hugging Face's format. Control tokens spelt out in a text are
    text, as they are to SentencePiece.

    Raises:
        ValueError: a model type or a setting that has no counterpart, or ids that differ on sample texts.
    """
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(file.read_bytes())
        reference = sentencepiece.SentencePieceProcessor(model_file=os.fspath(file))
    except Exception as error:  # protobuf's and SentencePiece's own have no common class
        raise ValueError(f"{file}: not a SentencePiece model ({error})") from error
    tokenizer = Tokenizer(_model(proto, file))
    tokenizer.normalizer = _normalizer(proto)
    fuse: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        fuse.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(fuse)
    control = [piece.piece for piece in proto.pieces if piece.type == piece.CONTROL]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in control])
    names = {
        f"{role}_token": reference.id_to_piece(index)
        for role, index in (
            ("unk", reference.unk_id()),
            ("bos", reference.bos_id()),
            ("eos", reference.eos_id()),
        )
        if index >= 0
    }
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        name_or_path=os.fspath(file),  # for phd.hf.readers; not saved
        **names,
    )
    for text in (*_SAMPLES, *control):
        ids = fast(text, add_special_tokens=False)["input_ids"]
        if ids != reference.encode(text):
            raise ValueError(
                f"{file}: as a Hugging Face tokenizer it gives other ids than SentencePiece for "
                f"{text[:40]!r}: pass --tokenizer with a Hugging Face tokenizer of your own"
            )
    return fast


def _model(proto: Any, file: Path) -> Any:
    trainer = proto.trainer_spec
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    if trainer.model_type == trainer.UNIGRAM:
        # Hugging Face's would find control, unknown and byte pieces in a text that spells them.
        pieces = [
            (piece.piece, piece.score if piece.type == piece.NORMAL else NEVER) for piece in proto.pieces
        ]
        return models.Unigram(pieces, trainer.unk_id, trainer.byte_fallback)
    if trainer.model_type != trainer.BPE:
        raise ValueError(f"{file}: a SentencePiece model of words or characters has no counterpart")
    vocab = {piece: index for index, (piece, _) in enumerate(pieces)}
    normal = {piece.piece: piece.score for piece in proto.pieces if piece.type == piece.NORMAL}
    # All pairs of pieces that make a third piece, the best third piece first: SentencePiece has no list of
    # merges.
    merges = [
        (-score, vocab[piece[:cut]], vocab[piece[cut:]], piece[:cut], piece[cut:])
        for piece, score in normal.items()
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    ]
    pairs = [(left, right) for *_, left, right in sorted(merges)]
    return models.BPE(
        vocab,
        pairs,
        unk_token=proto.pieces[trainer.unk_id].piece,
        byte_fallback=trainer.byte_fallback,
        fuse_unk=True,
    )


def _normalizer(proto: Any) -> Any:
    spec = proto.normalizer_spec
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", SPACE))
    return normalizers.Sequence(steps)
