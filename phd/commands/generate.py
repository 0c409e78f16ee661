"""`phd generate`: continue a text with a trained model, from its KV cache."""

import argparse
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phd.loading import add_rope_scale, chosen_device, load_model
from phd.pattern_flags import add_pattern_flags, asked_layers, with_layers

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phd generate`."""
    parser.add_argument(
        "model",
        type=Path,
        help="a Hugging Face folder, the --save folder of a run, or one iter_* folder in it",
    )
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", action="append", help="text to continue; repeat it for several at once")
    prompt.add_argument("--prompt-file", type=Path, help="file with the text to continue; - is stdin")
    parser.add_argument("--batch", type=int, default=1, help="continuations of each prompt, side by side")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token")
    parser.add_argument("--top-k", type=int, default=50, help="sample among this many likeliest; 0 is all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1; by default a GPU if there is one")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: as stored")
    parser.add_argument("--tokenizer", type=Path, help="where it lies now, if not where training found it")
    add_rope_scale(parser, "the longest prompt with its new tokens")
    add_pattern_flags(parser)


def run(args: Namespace) -> int:
    """Print the continuation token by token; of several, each when all are done. Rates go to stderr."""
    for name in ("batch", "max_new_tokens"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if args.temperature < 0 or args.top_k < 0:
        raise ValueError("--temperature and --top-k must not be negative")
    prompts = _prompts(args)
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    device = chosen_device(args.device)
    model, tokenizer = load_model(
        args.model, args.tokenizer, getattr(torch, args.dtype) if args.dtype else None
    )
    inputs = _encode(tokenizer, prompts, device)
    from phd.hf.rope import scale_model

    scale_model(model, args.rope_scale, inputs["input_ids"].shape[1] + args.max_new_tokens)
    if (layers := asked_layers(args, model.config)) is not None:
        model = with_layers(model, layers)
    model.to(device)
    length, limit = inputs["input_ids"].shape[1], model.config.max_position_embeddings
    if length >= limit:
        raise ValueError(
            f"--prompt has {length} tokens, the model was trained on sequences of {limit}: shorten it"
        )
    transformers.set_seed(args.seed)
    streamer = None
    if len(prompts) * args.batch == 1:
        print(prompts[0], end="", flush=True)
        streamer = transformers.TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    begin = time.perf_counter()
    settings = transformers.GenerationConfig(
        max_new_tokens=min(args.max_new_tokens, limit - length),
        num_return_sequences=args.batch,
        return_dict_in_generate=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=args.temperature > 0,
        **({"temperature": args.temperature, "top_k": args.top_k} if args.temperature > 0 else {}),
    )
    outputs: Any = model.generate(**inputs, generation_config=settings, streamer=streamer)
    seconds = time.perf_counter() - begin
    new = outputs.sequences[:, length:]
    if streamer is None:
        for index, text in enumerate(tokenizer.batch_decode(new, skip_special_tokens=True)):
            print(f"--- {index + 1}\n{prompts[index // args.batch]}{text}")
    count = int((new != tokenizer.pad_token_id).sum())
    print(
        f"{count} tokens in {seconds:.2f} s: {count / seconds:.1f} tokens/s; "
        f"{_cache_bytes(outputs.past_key_values):,} bytes of keys and values for "
        f"{len(outputs.sequences)} x {outputs.past_key_values.get_seq_length()} tokens",
        file=sys.stderr,
    )
    return 0


def _prompts(args: Namespace) -> list[str]:
    if args.prompt_file is None:
        return args.prompt or [""]
    if str(args.prompt_file) == "-":
        try:
            return [sys.stdin.read()]
        except UnicodeDecodeError as error:
            raise ValueError(f"--prompt-file - is not UTF-8 ({error}): convert it first") from error
    try:
        return [args.prompt_file.read_text(encoding="utf-8")]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--prompt-file {args.prompt_file} is not UTF-8 ({error}): convert it first, as by "
            "iconv -f latin1 -t utf-8"
        ) from error


def _encode(tokenizer: "PreTrainedTokenizerBase", prompts: list[str], device: Any) -> "BatchEncoding":
    """Ids and mask, padded on the left; with BOS if the tokenizer puts it there. An empty prompt starts a
    document: the end of the one before.
    """
    encoded = [tokenizer(text)["input_ids"] for text in prompts]
    ids = [x or [tokenizer.eos_token_id] for x in encoded]
    padded = tokenizer.pad({"input_ids": ids}, padding=True, padding_side="left", return_tensors="pt")
    return padded.to(device)


def _cache_bytes(cache: Any) -> int:
    if hasattr(cache, "nbytes"):
        return cache.nbytes()
    return sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))
