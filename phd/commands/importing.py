"""`phd import`: a Hugging Face folder as a checkpoint that pretrain_phd.py continues from.

Any Llama model will do: K > 1 needs no new weights, so a PHD run may start from one (upcycling).
"""

import argparse
import shlex
import sys
from argparse import Namespace
from pathlib import Path

from phd.quiet import quiet

TOKENIZER = "tokenizer"
"""Folder of the tokenizer, beside the checkpoint."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phd import`."""
    parser.add_argument("folder", type=Path, metavar="HF_DIR", help="Hugging Face folder of a Llama model")
    parser.add_argument("output", type=Path, metavar="CHECKPOINT", help="folder to write, for --load")


def run(args: Namespace) -> int:
    """Write the checkpoint and print how to train from it."""
    from phd.hf.save import new_folder

    output = args.output.resolve()
    with quiet(), new_folder(output) as temporary:
        flags = import_folder(args.folder.resolve(), temporary, output)
    print(f"{args.output}: written. Train it with its own shape and tokenizer, and flags of your choice:")
    print(f"pretrain_phd.py --run-dir RUN --pretrained-checkpoint {args.output} \\\n  {shlex.join(flags)}")
    if "--variant" not in flags:
        print("with --phd-copies K --override-phd-variant as well, it becomes a PHD-Transformer")
    return 0


def import_folder(folder: Path, temporary: Path, output: Path) -> list[str]:
    """Write ``folder``'s weights as the newest checkpoint in ``temporary``, which will become ``output``.

    Returns:
        the flags of pretrain_phd.py for its model and tokenizer.

    Raises:
        ValueError: the folder is damaged, or holds what Megatron's GPT cannot do.
    """
    import phd.megatron  # noqa: F401 (first: it prepares torch for Megatron on a machine without a GPU)

    # isort: split
    import torch
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training.checkpointing import save_checkpoint

    from phd.hf.convert import megatron_flags, megatron_weight
    from phd.hf.load import open_folder
    from phd.megatron import compat
    from phd.megatron.builder import PHDModelBuilder, model_config_from_args
    from phd.training.arguments import parse_for_tool

    config, tensors, dtype = open_folder(folder)
    flags = megatron_flags(config)
    if dtype in (torch.bfloat16, torch.float16):
        flags.append("--bf16")
    tokenizer = _tokenizer_flags(folder, temporary, config.vocab_size)
    once = "--micro-batch-size 1 --train-iters 1 --lr 0 --save-interval 1 --mock-data"
    saving = ["--save", str(temporary), "--no-save-optim", "--no-save-rng"]
    sys.argv = ["pretrain_phd.py", *flags, *tokenizer, *once.split(), *saving]
    args = parse_for_tool()
    compat.apply(args.phd_copies)
    compat.initialize_megatron()
    groups = ProcessGroupCollection.use_mpu_process_groups()
    model = PHDModelBuilder(model_config_from_args(args)).build_model(groups, True, True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(megatron_weight(name, tensors.get, config, len(parameter)))
    if args.tokenizer_model is not None:  # where it will lie
        args.tokenizer_model = str(output / TOKENIZER)
    save_checkpoint(1, [model], None, None, 0)
    torch.distributed.destroy_process_group()
    return [*flags, *(word.replace(str(temporary), str(output)) for word in tokenizer)]


def _tokenizer_flags(folder: Path, output: Path, vocab_size: int) -> list[str]:
    """Copy the tokenizer without the model's code, and return the flags that name it."""
    if (folder / "tokenizer_config.json").is_file():
        from transformers import AutoTokenizer

        from phd.hf.readers import save_tokenizer

        save_tokenizer(AutoTokenizer.from_pretrained(folder), output / TOKENIZER)
        return ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(output / TOKENIZER)]
    # NullTokenizer's end of document comes on top
    return ["--tokenizer-type", "NullTokenizer", "--vocab-size", str(vocab_size - 1)]
