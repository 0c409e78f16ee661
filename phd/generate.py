"""`phd generate`: continue a text with a checkpoint of pretrain_phd.py, on one process.

Plain recomputation: every new token runs the whole sequence through the training model, copies and all.
"""

import argparse
import contextlib
import io
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from megatron.core.models.gpt import GPTModel
    from megatron.core.tokenizers import MegatronTokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phd generate`."""
    parser.add_argument(
        "checkpoint", type=Path, help="the --save folder of a run, or one iter_* folder in it"
    )
    parser.add_argument("--prompt", default="", help="text to continue (default: start a document)")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token")
    parser.add_argument("--top-k", type=int, default=50, help="sample among this many likeliest; 0 is all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--tokenizer-model", type=Path, help="where it lies now, if not where training found it"
    )


def run(args: Namespace) -> int:
    """Print the continuation token by token."""
    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens must be at least 1, got {args.max_new_tokens}")
    if args.temperature < 0 or args.top_k < 0:
        raise ValueError("--temperature and --top-k must not be negative")
    log = io.StringIO()  # Megatron prints hundreds of lines on its way; they matter only when it fails
    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            model, tokenizer, trained = load_model(args.checkpoint, args.tokenizer_model)
    except ValueError:
        raise
    except Exception:
        sys.stderr.write(log.getvalue())
        raise
    prompt = tokenizer.tokenize(args.prompt) if args.prompt else [tokenizer.eod]
    if len(prompt) >= trained.seq_length:
        raise ValueError(
            f"--prompt has {len(prompt)} tokens, the model was trained on sequences of {trained.seq_length}: "
            "shorten it"
        )
    print(args.prompt, end="", flush=True)
    room = min(args.max_new_tokens, trained.seq_length - len(prompt))
    tokens = sample(model, prompt, room, args.temperature, args.top_k, args.seed, tokenizer.eod)
    # Pieces of one character may be spread over several tokens: print what is certain so far.
    generated: list[int] = []
    shown = ""
    for token in tokens:
        generated.append(token)
        text = tokenizer.detokenize(generated)
        if not text.endswith("\ufffd"):
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print()
    return 0


def load_model(
    checkpoint: Path, tokenizer_model: Path | None = None
) -> "tuple[GPTModel, MegatronTokenizer, Namespace]":
    """Build the model of a torch_dist checkpoint of any layout on this process, with its tokenizer.

    Returns:
        the model in eval mode, the tokenizer, the arguments it was trained with.

    Raises:
        ValueError: there is no whole checkpoint at ``checkpoint``, or its tokenizer is not found.
    """
    import phd.model  # noqa: F401 (first: it prepares torch for Megatron on a machine without a GPU)

    # isort: split
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training import get_tokenizer
    from megatron.training.checkpointing import load_checkpoint
    from megatron.training.global_vars import set_global_variables

    from phd.model import compat
    from phd.model.builder import PHDModelBuilder, model_config_from_args
    from phd.model.checkpoint import chosen_folder, find_damage, read_args

    root, step = checkpoint, None
    if checkpoint.name.startswith("iter_"):
        root, step = checkpoint.parent, int(checkpoint.name.removeprefix("iter_"))
    folder = chosen_folder(root, step)
    if folder is None:
        raise ValueError(
            f"no checkpoint in {checkpoint}: give the --save folder of a run, or one iter_* in it"
        )
    if damage := find_damage(folder):
        raise ValueError(f"the checkpoint {folder} is damaged: {damage}")
    args = read_args(folder)
    vars(args).update(_ONE_PROCESS, load=str(root), ckpt_step=step)
    if tokenizer_model is not None:
        args.tokenizer_model = str(tokenizer_model)
    if args.tokenizer_model is not None and not Path(args.tokenizer_model).exists():
        raise ValueError(f"the tokenizer {args.tokenizer_model} is not there: pass --tokenizer-model")

    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    set_global_variables(args)
    compat.apply(args.phd_copies)
    compat.initialize_megatron()
    groups = ProcessGroupCollection.use_mpu_process_groups()
    model = PHDModelBuilder(model_config_from_args(args)).build_model(groups, True, True).cuda()
    load_checkpoint([model], None, None)
    return model.eval(), get_tokenizer(), args


# What of the training run's arguments must not carry over to one process that only reads.
_ONE_PROCESS = {
    "rank": 0,
    "world_size": 1,
    "local_rank": 0,
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "virtual_pipeline_model_parallel_size": None,
    "data_parallel_size": 1,
    "sequence_parallel": False,
    "use_distributed_optimizer": False,
    "recompute_granularity": None,
    "micro_batch_size": 1,
    "global_batch_size": 1,
    "finetune": True,
    "no_load_optim": True,
    "no_load_rng": True,
    "exit_on_missing_checkpoint": True,
    "save": None,
    "pretrained_checkpoint": None,
    "tensorboard_dir": None,
    "wandb_project": None,
    "exit_signal_handler": False,
}


def sample(
    model: "GPTModel",
    tokens: list[int],
    count: int,
    temperature: float,
    top_k: int,
    seed: int,
    end: int,
) -> Iterator[int]:
    """Up to ``count`` next tokens after ``tokens``, ending before the token ``end``."""
    import torch

    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    for _ in range(count):
        token = _next_token(_last_logits(model, tokens, device), temperature, top_k, generator)
        if token == end:
            return
        tokens = [*tokens, token]
        yield token


def _last_logits(model: "GPTModel", tokens: list[int], device: "torch.device") -> "torch.Tensor":
    """Logits [v] after the last of ``tokens``."""
    import torch

    ids = torch.tensor([tokens], device=device)
    positions = torch.arange(len(tokens), device=device)[None]
    with torch.no_grad():
        return model(ids, positions, None)[0, -1].float()


def _next_token(logits: "torch.Tensor", temperature: float, top_k: int, generator: "torch.Generator") -> int:
    import torch

    if temperature == 0:
        return int(logits.argmax())
    if 0 < top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
    weights = (logits / temperature).softmax(-1)
    return int(torch.multinomial(weights, 1, generator=generator))
