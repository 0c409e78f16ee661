"""Which checkpoint a start loads: the one that the tracker file or --ckpt-step names, or where that is
damaged the newest whole one before it.
"""

from argparse import Namespace
from pathlib import Path
from typing import Literal

import torch

from phd.checkpoint.integrity import find_damage, find_torn, whole_checkpoints
from phd.checkpoint.read import iteration_folder, iteration_of
from phd.run.files import write_text
from phd.run.status import TRACKER


def resolve_checkpoint(args: Namespace) -> None:
    """Check what Megatron will load, every rank for itself and with the same result.

    Where the checkpoint of --load is not whole, as after a kill or a full disk, the newest whole one before
    it takes its place, with a warning. One that was asked for by --ckpt-step is not replaced.

    Raises:
        ValueError: there is no whole checkpoint where one was saved; or one is unsafe to read.
    """
    step_asked = args.ckpt_step is not None
    source = checkpoint_source(args)
    root = getattr(args, source)
    folder = chosen_folder(Path(root), args.ckpt_step) if root else None
    if folder is None:
        return  # nothing saved yet: the first start of a run that loads from where it saves
    if step_asked and not folder.exists():
        raise ValueError(
            f"there is no checkpoint of iteration {args.ckpt_step} (--ckpt-step) in {root}. "
            f"{_advice(folder.parent, whole_checkpoints(folder.parent), source, 'leave --ckpt-step out')}"
        )
    _refuse_other_format(folder)
    if problem := find_torn(folder):
        fall_back(args, source, folder, problem, step_asked)


def fall_back(args: Namespace, source: str, folder: Path, problem: str, step_asked: bool) -> Path:
    """Let Megatron load the newest whole checkpoint before the damaged one in ``folder``, with a warning. Not
    a later one: whoever wrote the iteration into the tracker file wanted to go back to it.

    Raises:
        ValueError: there is none; or the damaged one was asked for by --ckpt-step or is not the run's own.
    """
    before = [step for step in whole_checkpoints(folder.parent) if step < iteration_of(folder)]
    if step_asked or source != "load" or not before:
        raise damaged(folder, problem, before, source)
    args.ckpt_step = before[0]
    if args.rank == 0:
        print(
            f"> WARNING: the checkpoint {folder} is damaged: {problem}; continuing from iteration {before[0]}"
        )
    return iteration_folder(folder.parent, before[0])


def agree_on_checkpoint(args: Namespace, step_asked: bool) -> None:
    """Read every byte of the checkpoint that will be loaded, each rank its share; if a checksum is wrong, all
    ranks turn to the next whole one. Called with the process group up, before Megatron loads.

    Args:
        args: after :func:`resolve_checkpoint`, which may have named a step.
        step_asked: by --ckpt-step.

    Raises:
        ValueError: there is no other, or this one was asked for.
    """
    source = checkpoint_source(args)
    root = getattr(args, source)
    if args.rank == 0:
        for place in {args.load, root} - {None}:
            mend_tracker(Path(place))
    torch.distributed.barrier()
    folder = chosen_folder(Path(root), args.ckpt_step) if root else None
    while folder is not None and folder.is_dir():
        found: list[str | None] = [None] * args.world_size
        torch.distributed.all_gather_object(found, find_damage(folder, args.rank, args.world_size))
        damage = next((text for text in found if text), None)
        if damage is None:
            return
        folder = fall_back(args, source, folder, damage, step_asked)


def checkpoint_source(args: Namespace) -> Literal["load", "pretrained_checkpoint"]:
    """The argument whose folder Megatron will load from: --pretrained-checkpoint as long as the run has no
    checkpoint of its own, and never afterwards.
    """
    load = args.load and Path(args.load)
    # A tracker file that a kill left empty, or that is missing, is repaired before loading, if there is a
    # whole checkpoint beside it.
    own = load and (_tracker_text(load) or whole_checkpoints(load))
    return "pretrained_checkpoint" if args.pretrained_checkpoint and not own else "load"


def chosen_folder(root: Path, step: int | None) -> Path | None:
    """The folder that Megatron will load: --ckpt-step, else what the tracker file names; where that is empty,
    as a kill leaves it, or gone, the newest whole one.
    """
    if step is None:
        text = _tracker_text(root)
        if text == "release":
            raise ValueError(f"{root} holds a release checkpoint of Megatron: {_conversion(root)}")
        if text.isdecimal():
            step = int(text)
        elif text:
            raise ValueError(
                f"{root / TRACKER} should hold an iteration, found {text!r}. "
                f"{_advice(root, whole_checkpoints(root))}"
            )
        elif whole := whole_checkpoints(root):
            step = whole[0]
        else:
            return None
    return iteration_folder(root, step)


def _tracker_text(root: Path) -> str:
    tracker = root / TRACKER
    return tracker.read_text().strip() if tracker.is_file() else ""


def mend_tracker(root: Path) -> None:
    """Megatron writes the tracker file in place; a kill can leave it empty, on which Megatron gives up. With
    --ckpt-step it also gives up on anything else that is no number. Without the file it begins anew, beside
    the checkpoints that are there.
    """
    tracker = root / TRACKER
    text = _tracker_text(root)
    if text.isdecimal() or text == "release":
        return
    if whole := whole_checkpoints(root):
        write_text(tracker, str(whole[0]))
    elif not text:
        tracker.unlink(missing_ok=True)


def _refuse_other_format(folder: Path) -> None:
    if any(folder.glob("mp_rank_*")) and not (folder / ".metadata").exists():
        raise ValueError(f"{folder} is not a checkpoint in torch_dist format: {_conversion(folder.parent)}")


def _conversion(root: Path) -> str:
    return (
        f"convert it with Megatron's pretrain_gpt.py, the model's flags, --load {root}, --ckpt-format torch, "
        "--ckpt-convert-format torch_dist and --ckpt-convert-save NEW; it writes NEW/torch_dist"
    )


def damaged(folder: Path, problem: str, whole: list[int], source: str) -> ValueError:
    """The error for a checkpoint that no other one replaces; ``source`` as of :func:`checkpoint_source`."""
    return ValueError(
        f"the checkpoint {folder} is damaged: {problem}. {_advice(folder.parent, whole, source)}"
    )


def _advice(
    root: Path, whole: list[int], source: str = "load", afresh: str = "remove it, or take another,"
) -> str:
    """What to do instead: the first of the whole checkpoints in the same folder; ``afresh`` without one."""
    if not whole:
        return f"There is no whole checkpoint to go back to in {root}: {afresh} to start afresh"
    found = f"The newest whole one is iteration {whole[0]}"
    if source == "load":
        return f"{found}: continue from it with --ckpt-step {whole[0]}"
    return f"{found}: write {whole[0]} into {root / TRACKER}"  # --ckpt-step is for the run's own ones too
