"""A model for inference, from a Hugging Face folder or straight from a checkpoint of pretrain_phd.py."""

import argparse
import math
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phd.quiet import quiet
from phd.rules.variant import Variant

if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig, PreTrainedTokenizerBase

    from phd.checkpoint.read import CheckpointTensors


def chosen_device(name: str | None) -> "torch.device":
    """The device that --device names; None is a GPU if there is one, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
        # phd.megatron takes cuda for the CPU where there is none
        if device.type == "cuda" and not torch.cuda.is_available():
            raise RuntimeError
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises any of them
        raise ValueError(f"--device {name}: torch has no such device here: pass --device cpu") from error
    return device


def rope_scale(text: str) -> float:
    """The type of --rope-scale.

    Raises:
        argparse.ArgumentTypeError: no number, or less than 1.
    """
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not 1 <= scale < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of at least 1, got {text!r}")
    return scale


def add_rope_scale(parser: argparse.ArgumentParser, longest: str) -> None:
    """--rope-scale of a command that reads prompts; "auto" is None.

    Args:
        longest: what auto goes by, for the help.
    """
    parser.add_argument(
        "--rope-scale",
        type=lambda text: None if text == "auto" else rope_scale(text),
        default=1,
        metavar="G",
        help="divide rotary positions by G: a model trained with --rope-max-scale then reads G times its "
        f"context; auto: the least whole G for {longest} (default 1)",
    )


def load_model(
    path: Path, tokenizer: Path | None = None, dtype: "torch.dtype | None" = None
) -> "tuple[Any, PreTrainedTokenizerBase]":
    """Model (a LlamaForCausalLM) in eval mode and tokenizer, of a Hugging Face folder or of a run's newest
    checkpoint.

    Args:
        tokenizer: where it lies, if not in the folder or where training found it.
        dtype: of the weights; None keeps the stored one.

    Raises:
        ValueError: there is no model at ``path``, or it is damaged; or its tokenizer is not found.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        from phd.hf.load import open_folder
        from phd.hf.tokenizer import load_tokenizer

        open_folder(path)  # names what is wrong with it
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype or "auto")
        if tokenizer is not None:
            return model.eval(), load_tokenizer(tokenizer)
        if not (path / "tokenizer_config.json").is_file():
            raise ValueError(f"{path} has no tokenizer: pass --tokenizer")
        return model.eval(), AutoTokenizer.from_pretrained(path)

    trained, tensors, _ = open_checkpoint(path)
    config, found = describe(trained, tensors, tokenizer, False)
    assert found is not None
    import phd.hf  # noqa: F401 (registers our model)

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    weights = dict(weights_of(trained, tensors, config))
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.to(dtype or config.dtype)
    # its buffers are computed, not stored, and fp32 whatever the weights are
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval(), found


def open_checkpoint(path: Path) -> "tuple[Namespace, CheckpointTensors, int]":
    """The training's arguments, the tensors and the iteration of a run's newest checkpoint, or of one iter_*.

    Raises:
        ValueError: there is none, or it is damaged; names the file.
    """
    with quiet():
        from phd.checkpoint.choice import chosen_folder
        from phd.checkpoint.integrity import find_damage
        from phd.checkpoint.read import CheckpointTensors, iteration_of, read_args
    root, step = path, None
    if path.name.startswith("iter_"):
        root, step = path.parent, iteration_of(path)
    folder = chosen_folder(root, step)
    if folder is None or not folder.is_dir():
        raise ValueError(f"no checkpoint in {path}: give the --save folder of a run, or one iter_* in it")
    if damage := find_damage(folder):
        raise ValueError(f"the checkpoint {folder} is damaged: {damage}")
    trained = read_args(folder)
    return trained, CheckpointTensors(folder), iteration_of(folder)


def weights_of(
    trained: Namespace, tensors: "CheckpointTensors", config: "LlamaConfig"
) -> "Iterator[tuple[str, torch.Tensor]]":
    """Llama's tensors by name, of a checkpoint's model: with its adapters merged into its weights.

    Raises:
        ValueError: a tensor is missing or of another shape than the configuration tells.
    """
    from phd.hf.convert import Read, hf_weights
    from phd.hf.lora import merged

    read: Read = tensors.read
    if rank := getattr(trained, "lora_rank", 0):
        read = merged(read, config, trained.lora_alpha / rank)
    return hf_weights(read, config)


def describe(
    trained: Namespace, tensors: "CheckpointTensors", file: Path | None, without: bool
) -> "tuple[LlamaConfig, PreTrainedTokenizerBase | None]":
    """Configuration and tokenizer of a checkpoint's model.

    Args:
        file: of the tokenizer, if not where training found it.
        without: leave the tokenizer out.

    Raises:
        ValueError: the model is not Llama's, or its tokenizer is not found.
    """
    from phd.hf.convert import hf_config

    embedding = "embedding.word_embeddings.weight"
    rows = tensors.shape(embedding)[0]
    tokenizer = None if without else find_tokenizer(trained, file)
    vocab_size = rows
    if tokenizer is not None:
        vocab_size = len(tokenizer)
        if vocab_size > rows:
            raise ValueError(
                f"the tokenizer has {vocab_size} tokens, the model {rows}: pass the one it was trained with"
            )
    elif trained.vocab_size is not None:
        vocab_size = min(trained.vocab_size + (trained.tokenizer_type == "NullTokenizer"), rows)
    variant = Variant.from_arguments(vars(trained))
    config = hf_config(trained, vocab_size, tensors.dtype(embedding), variant)
    if tokenizer is not None:
        config.eos_token_id = tokenizer.eos_token_id
        config.bos_token_id = tokenizer.bos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    return config, tokenizer


def find_tokenizer(trained: Namespace, file: Path | None) -> "PreTrainedTokenizerBase":
    """The tokenizer that a model was trained with, or the one in ``file``, for transformers."""
    from phd.hf.tokenizer import load_tokenizer

    if file is None:
        if trained.tokenizer_type not in ("SentencePieceTokenizer", "HuggingFaceTokenizer"):
            raise ValueError(
                f"the model was trained with a {trained.tokenizer_type}: pass --tokenizer with its "
                "counterpart of Hugging Face, or --no-tokenizer"
            )
        file = Path(trained.tokenizer_model)
    if not file.exists():
        raise ValueError(f"the tokenizer {file} is not there: pass --tokenizer, or --no-tokenizer")
    return load_tokenizer(file)
