"""A start compares its arguments with those of the checkpoint that it continues, before anything is
written. Another model is refused; other training arguments are printed. A start that could never train
anything is refused too.
"""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from phd.checkpoint.choice import checkpoint_source, chosen_folder
from phd.checkpoint.growth import added_copies, describe, weights_alone
from phd.checkpoint.read import read_args
from phd.config import PHDConfig
from phd.megatron.transformer_config import key_value_heads
from phd.rules.variant import ARGUMENTS
from phd.run.arguments import differing
from phd.run.files import sha256
from phd.training.metrics import plain_arguments
from phd.training.other_model import (
    ADAPTERS,
    FUNCTIONS,
    POSITIONS,
    SHAPES,
    Arguments,
    change,
    lost_embedding,
    other_model,
    other_tokenizer,
    other_variant,
    tokenizer_file,
)
from phd.training.run_folder import run_folder

SETTINGS_OF_A_START = frozenset(
    {
        *(
            "finetune",
            "pretrained_checkpoint",
            "no_load_optim",
            "no_load_rng",
            "no_save_optim",
            "no_save_rng",
        ),
        *("override_opt_param_scheduler", "use_checkpoint_opt_param_scheduler", "padded_vocab_size"),
        *("skip_train", "phd_attention_backend", "phd_prune_last_layer", "eval_iters_given"),
    }
)
"""Arguments that concern one start, or that Megatron fills in later: they make no other training."""


@dataclass(kw_only=True)
class PHDCheckpointConfig:
    """Continuing from the checkpoint of another variant."""

    override_phd_variant: bool = False
    """Continue from a checkpoint that was trained with another --phd-copies, --phd-window, --phd-chunk,
    --phd-naive, --phd-copy-embedding or --attention-pattern; what the checkpoint has no weights for starts
    anew. Refused without this flag."""


class CannotGoOn(ValueError):
    """No start with this command line can ever continue; recorded in the run folder's status.json, if there
    is one.
    """

    def __init__(self, reason: str, args: Namespace) -> None:
        super().__init__(reason)
        self.run_folder = run_folder(args)


def record_contents(args: Namespace) -> None:
    """Note among the arguments, which go into checkpoints and phd_run.json, what the files hold of which the
    flags give the path alone; every rank reads them.
    """
    paths = (tokenizer_file(getattr(args, name)) for name in ("tokenizer_model", "vocab_file", "merge_file"))
    files = [path for path in paths if path is not None]
    args.tokenizer_sha256 = sha256(*files) if files else None
    for name in ("data_args", "per_split_data_args"):
        path = getattr(args, f"{name}_path")
        setattr(args, name, Path(path).read_text().split() if path and Path(path).is_file() else None)


def compare_with_checkpoint(args: Namespace, config: PHDConfig, step_asked: bool) -> None:
    """Refuse a checkpoint of another model; print, on rank 0, with what else it was trained.

    Args:
        args: Megatron's, validated, with ``record_contents``.
        step_asked: by --ckpt-step.

    Raises:
        CannotGoOn: the model, its tokenizer or its variant differ, each named; or the state of the optimizer
            was saved for another layout; or there is no checkpoint, where --exit-on-missing-checkpoint asks
            for one.
    """
    source = checkpoint_source(args)
    root = getattr(args, source)
    folder = chosen_folder(Path(root), args.ckpt_step) if root else None
    if folder is None:
        if root and args.exit_on_missing_checkpoint:
            raise CannotGoOn(
                f"there is no checkpoint in {root}, and with --exit-on-missing-checkpoint a start without "
                "one does nothing: correct the folder, or leave the flag out for the first start",
                args,
            )
        return
    saved = read_args(folder)
    first = source == "pretrained_checkpoint" or args.finetune
    was, now = _known(saved), _known(args)
    names = [*SHAPES, *FUNCTIONS, *(() if first else POSITIONS)]
    if was["lora_rank"] or not first:  # else adapters join its weights
        names += ADAPTERS
    if args.position_embedding_type == "learned_absolute":
        names.append("max_position_embeddings")
    different = other_model(was, now, names)
    if not (first and was["tokenizer_type"] == "NullTokenizer"):  # of weights that came without one
        different += other_tokenizer(was, now)
    different += lost_embedding(saved, config)
    variants = None if args.override_phd_variant else other_variant(saved, config)
    if different or variants:
        raise CannotGoOn(_refusal(folder, different, variants, first), args)
    refusal = (
        _other_sharding(folder, saved, args)
        or _other_parameters(folder, saved, args)
        or _no_growth(folder, saved, args)
    )
    if not weights_alone(args, saved) and refusal:
        raise CannotGoOn(refusal, args)
    if args.rank == 0:
        if args.override_phd_variant and (variants := other_variant(saved, config)):
            anew = describe(added_copies(saved, args), args.phd_copy_embedding)
            print(
                f"> --override-phd-variant: {variants[1]} continues from {folder}, trained as {variants[0]}"
                f"{anew}"
            )
        told = {*POSITIONS} if first else {*was, *now} - {*ARGUMENTS, *SETTINGS_OF_A_START, *names}
        if changed := [change(name, was, now) for name in _in_both(was, now) if name in told]:
            print(f"> {folder} was trained with other arguments: {', '.join(changed)}")
        if args.run_dir and step_asked:
            print(
                f"> --ckpt-step {args.ckpt_step}: every start with it goes back there: leave it out next time"
            )


def _other_sharding(folder: Path, saved: Namespace, args: Namespace) -> str | None:
    """Where the state of the optimizer does not fit this run. Megatron would say so late, on each rank."""
    anew = f"begin a new run with --pretrained-checkpoint {folder.parent}"
    if saved.use_distributed_optimizer != args.use_distributed_optimizer:
        how, do = ("with", "pass it") if saved.use_distributed_optimizer else ("without", "leave it out")
        return f"{folder} was saved {how} --use-distributed-optimizer: {do}, or {anew}"
    names = ("tensor_model_parallel_size", "pipeline_model_parallel_size")
    was, ours = ([getattr(one, name) for name in names] for one in (saved, args))
    if was != ours and saved.use_distributed_optimizer and not saved.dist_ckpt_optim_fully_reshardable:
        return (
            f"{folder} was saved with TP {was[0]} and PP {was[1]} in a way that only DP can change (this "
            f"run: TP {ours[0]}, PP {ours[1]}): continue as before, with "
            f"--dist-ckpt-optim-fully-reshardable, until it has saved again; or {anew}"
        )
    return None


def _other_parameters(folder: Path, saved: Namespace, args: Namespace) -> str | None:
    """Where the optimizer has states of other parameters than those that train now."""
    was, ours = (getattr(one, "train_only", None) for one in (saved, args))
    if was == ours:
        return None
    before = "all of its parameters" if was is None else f"--train-only {was}"
    remedy = "leave --train-only out" if was is None else f"pass --train-only {was}"
    return (
        f"{folder} was training {before}, and its optimizer knows no others: {remedy}, or begin a new run "
        f"with --pretrained-checkpoint {folder.parent}"
    )


def _no_growth(folder: Path, saved: Namespace, args: Namespace) -> str | None:
    """Where the state of the optimizer cannot take in parameters that the checkpoint has not got."""
    if not added_copies(saved, args):
        return None
    lacks = f"{folder} lacks copy embeddings of this run, and the state of its optimizer "
    anew = f"begin a new run with --pretrained-checkpoint {folder.parent}"
    if saved.use_distributed_optimizer and not saved.dist_ckpt_optim_fully_reshardable:
        return (
            f"{lacks}was saved in a way that cannot take them in: continue as before, with "
            f"--dist-ckpt-optim-fully-reshardable, until it has saved again; or {anew}"
        )
    if args.optimizer != "adam" or args.optimizer_cpu_offload:
        which = "--optimizer-cpu-offload" if args.optimizer == "adam" else f"--optimizer {args.optimizer}"
        return f"{lacks}cannot take them in with {which}: {anew}"
    return None


def _known(args: Namespace) -> Arguments:
    """What can be compared: a checkpoint has what Megatron fills in when it builds the optimizer."""
    known = plain_arguments(args)
    for unit in ("iters", "samples"):
        if known.get(f"lr_decay_{unit}") is None:
            known[f"lr_decay_{unit}"] = known.get(f"train_{unit}")
    if known.get("train_samples"):
        known["train_iters"] = known["lr_decay_iters"] = None
    without = dict.fromkeys(ADAPTERS) | {"lora_rank": 0}  # of a checkpoint from before there were any
    return without | known | {"num_query_groups": key_value_heads(args)}


def _in_both(was: Arguments, now: Arguments) -> list[str]:
    """The differences, without arguments that one of the two versions of the code does not have."""
    both = was.keys() & now.keys()
    return differing({name: was[name] for name in both}, {name: now[name] for name in both})


def _refusal(folder: Path, different: list[str], variants: tuple[str, str] | None, first: bool) -> str:
    trained = f"was trained as {variants[0]}, this run is {variants[1]}" if variants else ""
    if variants and not different:
        return (
            f"the checkpoint {folder} {trained}: pass --variant {variants[0]}, or --override-phd-variant to "
            "change the variant on purpose"
        )
    other = "another --pretrained-checkpoint" if first else "another run folder"
    has = f"the checkpoint has {'; '.join(different)}" + (f"; it {trained}" if variants else "")
    return f"{has}: pass the flags that {folder} was trained with, or take {other}"
