"""The folders that a command line gives a run: what is refused would begin anew at every start, or mix two
trainings in one folder.
"""

from argparse import Namespace
from pathlib import Path

from phd.checkpoint.read import iteration_of, saved_folders
from phd.run.arguments import flag

AT_EVERY_START = {
    "no_load_optim": "would begin Adam's moments and the schedule anew",
    "no_load_rng": "would draw the same random numbers again",
    "no_save_optim": "leaves the next start without the state of the optimizer",
    "no_save_rng": "leaves the next start without the state of the random numbers",
}
"""Flags for one start, which --run-dir would obey at every start; and what each start would then do."""


def run_folder(args: Namespace) -> Path | None:
    """Where the run's record goes; None: there is none, also because nothing is trained (--skip-train)."""
    folder = None if args.skip_train else args.run_dir or args.save or args.tensorboard_dir
    return Path(folder) if folder else None


def resolve_run_folder(args: Namespace) -> None:
    """Fill in the parts of --run-dir that were not given as flags.

    Raises:
        ValueError: a flag that would begin the run anew at every start; or a folder is a link to nowhere, as
            to a file system that is not mounted on this node: this start would begin anew.
    """
    if args.run_dir:
        run = Path(args.run_dir)
        args.save = args.save or str(run / "checkpoints")
        for folder in (run, Path(args.save)):
            if folder.is_symlink() and not folder.exists():
                raise ValueError(
                    f"{folder} links to {folder.readlink()}, which is not there: mount it or put it back, "
                    "and start the same command again; or remove the link"
                )
        if args.load and Path(args.load).resolve() != Path(args.save).resolve():
            raise ValueError(
                f"--run-dir {run} continues from its own checkpoints, and --load {args.load} would begin "
                "there again at every start: pass --pretrained-checkpoint instead, for the first weights"
            )
        refuse_repeated(args)
        args.load = args.save
        args.save_interval = args.save_interval or 1000
        if not args.skip_train:
            args.tensorboard_dir = args.tensorboard_dir or str(run / "tensorboard")
        args.wandb_save_dir = args.wandb_save_dir or str(run)


def refuse_repeated(args: Namespace) -> None:
    """Check a command line with --run-dir for what each start would do again.

    Raises:
        ValueError: names the flag.
    """
    if args.finetune:
        raise ValueError(
            f"--finetune would set --run-dir {args.run_dir} back to iteration 0 at every start: leave it "
            "out; --pretrained-checkpoint implies it for the first start"
        )
    for name, what in AT_EVERY_START.items():
        if getattr(args, name):
            raise ValueError(
                f"{flag(name)} {what}, at every start of --run-dir {args.run_dir}: leave it out; a run that "
                "starts with the weights alone is another --run-dir with --pretrained-checkpoint"
            )


def refuse_mixing(args: Namespace) -> None:
    """Check that a --save which holds checkpoints is gone on from: else the new ones would come to lie among
    them, and the record would be cut.

    Raises:
        ValueError: it is not; names the flags.
    """
    if not args.save or args.skip_train:
        return
    save = Path(args.save)
    held = [folder for folder in saved_folders(save) if (folder / ".metadata").exists()]
    from_here = args.load and Path(args.load).resolve() == save.resolve()
    if not held or (from_here and not args.finetune):
        return
    holds = f"--save {save} holds checkpoints already (the newest: iteration {iteration_of(held[0])})"
    if from_here:
        raise ValueError(
            f"{holds}, and --finetune begins at iteration 0: leave it out to go on from them, or take "
            "another --save"
        )
    loads = f"--load {args.load} is another folder" if args.load else "there is no --load"
    raise ValueError(f"{holds}, and {loads}: pass --load {save} to go on from them, or take another --save")
