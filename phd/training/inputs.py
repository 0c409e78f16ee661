"""The files that flags name, looked for before a training takes its run folder."""

from argparse import Namespace
from pathlib import Path

from megatron.training.utils import get_blend_and_blend_per_split

from phd.checkpoint.choice import chosen_folder
from phd.training.dataset import refuse_missing, refuse_weights

FILES = {
    "--data-args-path": "data_args_path",
    "--per-split-data-args-path": "per_split_data_args_path",
    "--vocab-file": "vocab_file",
    "--merge-file": "merge_file",
    "--tokenizer-metadata": "metadata_path",
    "--te-precision-config-file": "te_precision_config_file",
}

FILE_TOKENIZERS = ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer", "TikTokenizer")
"""Whose --tokenizer-model is a file; the others' may be a name on a hub."""


def refuse_missing_inputs(args: Namespace) -> None:
    """Check that what the training will read is there. Sizes, checksums and cards come later, with the
    process group up.

    Args:
        args: validated.

    Raises:
        ValueError: names the flag and the file.
    """
    named = {flag: getattr(args, argument) for flag, argument in FILES.items()}
    if args.tokenizer_type in FILE_TOKENIZERS:
        named["--tokenizer-model"] = args.tokenizer_model
        if args.tokenizer_model is None:
            raise ValueError(f"--tokenizer-type {args.tokenizer_type} needs --tokenizer-model: its file")
    for flag, path in named.items():
        if path is not None and "://" not in path and not Path(path).is_file():
            raise ValueError(f"{flag} {path} is no file: correct the path, or put it back")
    _refuse_missing_checkpoint(args)
    if not args.mock_data:
        blend, blend_per_split = get_blend_and_blend_per_split(args)
        data = Namespace(
            blend=blend,
            blend_per_split=blend_per_split,
            object_storage_cache_path=args.object_storage_cache_path,
        )
        refuse_missing(data)
        refuse_weights(data)


def _refuse_missing_checkpoint(args: Namespace) -> None:
    """A run that loads from where it saves begins anew where nothing is saved yet. Any other folder was meant
    to hold a checkpoint.
    """
    own = (
        args.load is not None
        and args.save is not None
        and Path(args.load).resolve() == Path(args.save).resolve()
    )
    for flag, folder in (("--load", args.load), ("--pretrained-checkpoint", args.pretrained_checkpoint)):
        if folder is None or (flag == "--load" and (own or args.pretrained_checkpoint)):
            continue
        chosen = chosen_folder(Path(folder), args.ckpt_step if flag == "--load" else None)
        if chosen is None:
            raise ValueError(
                f"there is no checkpoint in {flag} {folder}: correct the path, or leave it out to begin with "
                "new weights"
            )
