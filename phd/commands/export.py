"""`phd export`: a checkpoint of pretrain_phd.py as a Hugging Face folder.

K = 1 with full attention becomes a Llama model, for any server; K > 1 and sparse layers bring their own
modeling files: ``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)``.
"""

import argparse
import json
from argparse import Namespace
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from phd.loading import describe, open_checkpoint, rope_scale, weights_of
from phd.pattern_flags import add_pattern_flags, asked_layers, config_with_layers
from phd.rules.variant import Variant

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedTokenizerBase


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phd export`."""
    parser.add_argument(
        "checkpoint", type=Path, help="the --save folder of a run, or one iter_* folder in it"
    )
    parser.add_argument("output", type=Path, metavar="OUT_DIR", help="folder to write; must not be there yet")
    add_tokenizer(parser)
    parser.add_argument(
        "--rope-scale",
        type=rope_scale,
        default=1,
        metavar="G",
        help="divide rotary positions by G: a model trained with --rope-max-scale then reads G times its "
        "context (default 1)",
    )
    add_pattern_flags(parser)


def add_tokenizer(parser: argparse.ArgumentParser) -> None:
    """The flags for the tokenizer of a checkpoint."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--tokenizer",
        type=Path,
        help="SentencePiece .model, tokenizer.json or a Hugging Face folder, if not where training found it",
    )
    group.add_argument("--no-tokenizer", action="store_true", help="export the model alone")


def run(args: Namespace) -> int:
    """Write the folder and say what is in it."""
    from phd.hf.rope import scale_rope

    def as_asked(config: "LlamaConfig") -> "LlamaConfig":
        scale_rope(config, args.rope_scale)
        layers = asked_layers(args, config)
        return config if layers is None else config_with_layers(config, layers)

    config, tokenizer, told = export(
        args.checkpoint, args.output, args.tokenizer, args.no_tokenizer, as_asked
    )
    print(f"{args.output}: {told}")
    remote = ", trust_remote_code=True" if needs_code(config) else ""
    if tokenizer is not None and not needs_code(config):
        from phd.hf.readers import sentencepiece_model, why_not_llama_cpp

        if reason := why_not_llama_cpp(sentencepiece_model(tokenizer), tokenizer):
            print(f"not for llama.cpp: the tokenizer has {reason}, and it would read other ids")
    print(f'load it with: AutoModelForCausalLM.from_pretrained("{args.output}"{remote})')
    return 0


def export(
    checkpoint: Path,
    output: Path,
    tokenizer_at: Path | None = None,
    no_tokenizer: bool = False,
    changed: "Callable[[LlamaConfig], LlamaConfig]" = lambda config: config,
) -> "tuple[LlamaConfig, PreTrainedTokenizerBase | None, str]":
    """Write the folder ``output``. Returns what lies there, and in words what it is.

    Args:
        checkpoint: the --save folder of a run, or one iter_* folder in it.
        tokenizer_at: where it lies, if not where training found it.
        changed: what the folder's configuration is to be, of the one that was trained.
    """
    from phd.hf.save import new_folder, save_weights

    trained, tensors, step = open_checkpoint(checkpoint)
    config, tokenizer = describe(trained, tensors, tokenizer_at, no_tokenizer)
    config = changed(config)
    with new_folder(output) as folder:
        total = save_weights(weights_of(trained, tensors, config), folder)
        save_rest(folder, config, tokenizer, trained, step)
    variant = Variant.from_arguments(vars(trained))
    return (
        config,
        tokenizer,
        f"{variant}, iteration {step:,}, {total / 1e6:,.1f} MB of {config.dtype} weights",
    )


def save_rest(
    folder: Path,
    config: "LlamaConfig",
    tokenizer: "PreTrainedTokenizerBase | None",
    trained: Namespace,
    step: int,
) -> None:
    """Everything but the weights."""
    from transformers import GenerationConfig

    from phd.hf.readers import save_config, save_tokenizer

    save_config(config, folder)
    tokens = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    # servers sample at the temperature that is asked for only if the model says that it samples
    GenerationConfig(**tokens, do_sample=True).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.model_max_length = config.max_position_embeddings
        save_tokenizer(tokenizer, folder)
    facts = training_facts(trained, step)
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(config, trained, facts, tokenizer), encoding="utf-8")


WHERE_GIVEN = ("rope_max_scale", "train_only", "lora_rank", "lora_alpha")
"""Arguments of a training that its card tells where they were given."""


def needs_code(config: "LlamaConfig") -> bool:
    """Whether transformers' own Llama does not run it."""
    return config.model_type != "llama"


def training_facts(trained: Namespace, step: int) -> dict[str, object]:
    """What the card tells of the training, for programs."""
    names = (
        *("seq_length", "global_batch_size", "lr", "min_lr", "lr_decay_style", "weight_decay", "clip_grad"),
        *("seed", "bf16", "tensor_model_parallel_size", "pipeline_model_parallel_size"),
    )
    return {
        "variant": str(Variant.from_arguments(vars(trained))),
        "iteration": step,
        "tokens": step * trained.global_batch_size * trained.seq_length,
        **{name: getattr(trained, name) for name in names},
        **{name: value for name in WHERE_GIVEN if (value := getattr(trained, name, None))},
        "megatron_core": version("megatron-core"),
        "pretrain_phd": version("pretrain-phd"),
    }


def model_card(
    config: "LlamaConfig",
    trained: Namespace,
    facts: dict[str, object],
    tokenizer: "PreTrainedTokenizerBase | None",
) -> str:
    """README.md of the folder."""
    variant = Variant.from_arguments(vars(trained))
    phd = variant.copies.count > 1
    remote = ", trust_remote_code=True" if needs_code(config) else ""
    rows = "".join(f"| {name} | {value} |\n" for name, value in facts.items())
    about = "A Llama model, the vanilla baseline of a PHD-Transformer (arXiv 2504.14992).\n"
    if phd:
        kind, cached = "PHD-Transformer", "only the first copy stays"
        if variant.copies.cached:
            kind, cached = "baseline of a PHD-Transformer", "all of them stay"
        own = {
            "vector": " Hidden copies enter with a learned vector each.",
            "table": " Hidden copies enter by embedding tables of their own.",
        }.get(variant.embedding, "")
        about = f"""A {kind} (arXiv 2504.14992), {facts["variant"]}: every token passes through the model
{variant.copies.count} times in one forward pass, {cached} in the KV cache, and the last copy
predicts the next token.{own} The weights of the layers have a Llama model's names and shapes.
"""
    if variant.pattern.sparse:
        about += f"""
A LongGen hybrid (arXiv 2410.01485): sparse layers see and cache some blocks of tokens alone, by layers
{variant.pattern}.
"""
    exported = getattr(config, "phd_variant", str(Variant()))
    if exported != str(variant.outside_training(config.num_hidden_layers)):
        about += f"""
Its layers keep other keys than in training: {exported}.
"""
    rope = dict(config.rope_parameters or {})
    if rope.get("rope_type") == "linear":
        about += f"""
Rotary positions are divided by {rope["factor"]:g}: it reads {config.max_position_embeddings} tokens at once.
"""
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [{"phd-transformer, " if phd else ""}llama]
---

# {facts["variant"]}

{about}
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("."{remote})
tokenizer = AutoTokenizer.from_pretrained("."{remote})
inputs = tokenizer("Once upon a time", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))
```

{"" if needs_code(config) else readers(tokenizer)}## Training

Pretrained from random weights with pretrain_phd.py on Megatron-Core.

| | |
|---|---|
{rows}"""


def readers(tokenizer: "PreTrainedTokenizerBase | None") -> str:
    """The card's section of who reads a plain Llama as what it is."""
    from phd.hf.readers import CHECKED_WITH, sentencepiece_model, why_not_llama_cpp

    text = f"## Other readers\n\nChecked, ids and logits, with {CHECKED_WITH}.\n"
    reason = None if tokenizer is None else why_not_llama_cpp(sentencepiece_model(tokenizer), tokenizer)
    if reason is not None:
        text += f"Not for llama.cpp: this tokenizer has {reason}, and it would read other ids.\n"
    return text + "\n"
