"""What is certain of a tokenizer.json: whether gigatoken does the same, and whether a text may be cut.

Only what is listed here is taken for certain. gigatoken passes over what it does not know of (a Digits beside
a Split, the behavior of a Split, a suffix of words), so that it reads a file is no proof. The tests compare
on random texts.

That gigatoken orders merges by what they make, and not one by one, is no difference: whatever text a piece is
made in, its last merge is that of the piece alone, as merges within it do not depend on what is around it.
"""

from collections.abc import Container, Iterable, Sequence
from typing import Any

from data_tools.encoders.patterns import FAST

Document = dict[str, Any]


def why_not_fast(document: Document) -> str | None:
    """Why gigatoken might give other ids than `tokenizers`, or None if it does not.

    Args:
        document: the file as `tokenizers` writes it, with nothing left to defaults.
    """
    model = document["model"]
    if model["type"] != "BPE":
        return f"only BPE has a fast path, and this is {model['type']}"
    if model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        return "its pieces have a prefix or suffix for their place in a word"
    return _why_not_byte_fallback(document) if model["byte_fallback"] else _why_not_byte_level(document)


def knows_everything(document: Document) -> bool:
    """Whether it is a BPE that has an id for each character, or for each byte.

    Args:
        document: the file as it is.
    """
    model = document["model"]
    if (
        model.get("type") != "BPE"
        or model.get("continuing_subword_prefix")
        or model.get("end_of_word_suffix")
    ):
        return False
    if model.get("byte_fallback"):
        return _has_fallback(model["vocab"])
    steps = [
        *_steps(document.get("pre_tokenizer"), "pretokenizers"),
        *_steps(document.get("normalizer"), "normalizers"),
    ]
    return any(step["type"] == "ByteLevel" for step in steps) and _has_bytes(model["vocab"])


def is_nfc_only(normalizer: Document | None) -> bool:
    """Whether a normalizer is NFC and nothing else."""
    steps = _steps(normalizer, "normalizers")
    return bool(steps) and all(step["type"] == "NFC" for step in steps)


def _why_not_byte_level(document: Document) -> str | None:
    if not _has_bytes(document["model"]["vocab"]):
        return "its vocabulary lacks some of the 256 bytes"
    if document["normalizer"] is not None and not is_nfc_only(document["normalizer"]):
        return f"its normalizer is not NFC ({_types(document['normalizer'], 'normalizers')})"
    if not _splits_for_certain(document["pre_tokenizer"]):
        return f"how it splits words is not known ({_types(document['pre_tokenizer'], 'pretokenizers')})"
    return None


def _splits_for_certain(pre_tokenizer: Document | None) -> bool:
    if pre_tokenizer is None:
        return False
    if pre_tokenizer["type"] == "ByteLevel":
        return pre_tokenizer["use_regex"]
    *splits, last = _steps(pre_tokenizer, "pretokenizers") or [{"type": None}]
    return (
        last["type"] == "ByteLevel"
        and not last["use_regex"]
        and not last["add_prefix_space"]
        and all(
            split["type"] == "Split" and split["behavior"] == "Isolated" and not split["invert"]
            for split in splits
        )
        and tuple(split["pattern"].get("Regex") for split in splits) in FAST
    )


def _why_not_byte_fallback(document: Document) -> str | None:
    model, normalizer = document["model"], _steps(document["normalizer"], "normalizers")
    if model["ignore_merges"]:
        return "it takes whole words past its merges"
    if not _has_fallback(model["vocab"]):
        return "its vocabulary lacks some of the 256 bytes"
    if any("<0x" in part for merge in model["merges"] for part in merge):
        return "it merges bytes"
    if not all(
        step["type"] == "Prepend" or (step["type"] == "Replace" and "String" in step["pattern"])
        for step in normalizer
    ):
        return (
            f"its normalizer does more than put spaces in ({_types(document['normalizer'], 'normalizers')})"
        )
    pre_tokenizer = document["pre_tokenizer"]
    if pre_tokenizer is None or pre_tokenizer["type"] == "Metaspace":
        return None
    # Gemma's: there are no spaces left to split at.
    if (
        pre_tokenizer["type"] == "Split"
        and not pre_tokenizer["invert"]
        and pre_tokenizer["pattern"] == {"String": " "}
        and any(step.get("pattern") == {"String": " "} and step["content"] == "\u2581" for step in normalizer)
        and not any(" " in step.get("prepend", "") + step.get("content", "") for step in normalizer)
    ):
        return None
    return f"how it splits words is not known ({_types(pre_tokenizer, 'pretokenizers')})"


def _has_bytes(vocabulary: Iterable[str]) -> bool:
    from tokenizers.pre_tokenizers import ByteLevel

    return set(ByteLevel.alphabet()) <= set(vocabulary)


def _has_fallback(vocabulary: Container[str]) -> bool:
    return all(
        f"<0x{byte:02X}>" in vocabulary or (byte < 128 and chr(byte) in vocabulary) for byte in range(256)
    )


def can_be_cut(document: Document, added_tokens: Iterable[Any]) -> bool:
    """Whether a text may be cut between a letter and a space that another letter follows.

    So it is for a byte-level BPE that splits words like GPT-2, where nothing before the space belongs to the
    word that begins with it. NFC, too, never looks past a space. Added tokens are looked for in the whole
    text: one that holds a space may lie across the cut, and one that takes the spaces around it, or asks
    whether a letter is beside it, looks across.

    Args:
        document: the file as it is.
        added_tokens: ``tokenizers.AddedToken``, all that there are.
    """
    pre_tokenizer = document.get("pre_tokenizer") or {}
    return (
        (document.get("model") or {}).get("type") == "BPE"
        and (document.get("normalizer") is None or is_nfc_only(document["normalizer"]))
        and pre_tokenizer.get("type") == "ByteLevel"
        and pre_tokenizer.get("use_regex", True)
        and not pre_tokenizer.get("add_prefix_space", True)
        and not any(
            token.lstrip or token.rstrip or token.single_word or " " in token.content
            for token in added_tokens
        )
    )


def _steps(part: Document | None, name: str) -> Sequence[Document]:
    """The steps that a Sequence consists of, of a single one itself."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [step for each in part[name] for step in _steps(each, name)]


def _types(part: Document | None, name: str) -> str:
    return ", ".join(step["type"] for step in _steps(part, name)) or "none"
