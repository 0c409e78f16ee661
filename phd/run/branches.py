"""Branches of a run, their trunk: a checkpoint of it, continued as several variants on the same batches.

A branch is a run folder that begins with the trunk's checkpoint as its own, weights and Adam's moments, and
with BRANCH_FILE, which says where that came from. Its iterations go on counting where the trunk's end, and
its learning rate goes from the trunk's constant one down to zero.
"""

import contextlib
import hashlib
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from phd.rules.variant import ARGUMENTS, Variant
from phd.run.arguments import Arguments, flag
from phd.run.files import read_json, write_json, write_text
from phd.run.record import BRANCH_FILE, METRICS_FILE, RUN_FILE, read_lines
from phd.run.starts import arguments_by_iteration
from phd.run.status import STATUS_FILE, TRACKER, newest_checkpoint

LAUNCHER = "launch.sh"
"""In a branch's folder: what starts it, or goes on with it."""

REPLACED = frozenset(
    {
        *ARGUMENTS,
        *("variant", "override_phd_variant"),
        *("run_dir", "save", "load", "ckpt_step", "tensorboard_dir", "wandb_save_dir", "wandb_exp_name"),
        *("pretrained_checkpoint", "finetune", "exit_on_missing_checkpoint", "skip_train"),
        *("exit_interval", "exit_duration_in_mins", "seed", "train_iters", "data_iters", "min_lr"),
        *("lr_warmup_iters", "lr_warmup_fraction", "lr_decay_style", "lr_decay_iters"),
        *("lr_wsd_decay_style", "lr_wsd_decay_iters"),
        *("override_opt_param_scheduler", "use_checkpoint_opt_param_scheduler"),
    }
)
"""What a branch says itself, or what was meant for one start of the trunk: not taken from its flags."""

DIGESTED_BYTES = 2**20
"""Of each file of a checkpoint: trained weights differ from the first on, and a large model has many."""


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """A run, at one of its checkpoints, which was trained at a constant rate."""

    folder: Path
    checkpoint: Path
    """Its folder, called after the iteration."""
    iteration: int
    warmup_iters: int
    arguments: Arguments
    flags: tuple[str, ...]
    """The flags of its last start, without those of REPLACED."""
    world_size: int

    @classmethod
    def read(cls, folder: Path, iteration: int | None = None) -> Self:
        """The run at its newest checkpoint, or at that of ``iteration``.

        Raises:
            ValueError: it is no run with such a checkpoint, counts samples, or had no constant rate there.
        """
        about = read_json(folder / RUN_FILE)
        if not about.get("arguments") or "command" not in about:
            raise ValueError(
                f"{folder} holds no {RUN_FILE} with a command line: give the --run-dir of a training"
            )
        saves = folder / read_json(folder / STATUS_FILE).get("checkpoints", "checkpoints")
        at = newest_checkpoint(saves) if iteration is None else iteration
        checkpoint = saves / f"iter_{at:07d}"
        if not (checkpoint / ".metadata").exists():
            which = "checkpoint" if not at else f"checkpoint of iteration {at}"
            raise ValueError(f"{folder} has no {which} to branch from: look into {saves}")
        before = [arguments for first, arguments in arguments_by_iteration(about) if first < at]
        arguments = before[-1] if before else about["arguments"]
        return cls(
            folder=folder,
            checkpoint=checkpoint,
            iteration=at,
            warmup_iters=_constant_since(folder, arguments, at),
            arguments=arguments,
            flags=_without(shlex.split(about["command"])[1:], REPLACED),
            world_size=about.get("world_size", 1),
        )

    def digest(self) -> str:
        """Of the names, lengths and first bytes of the checkpoint's files."""
        digest = hashlib.sha256()
        for file in sorted(path for path in self.checkpoint.rglob("*") if path.is_file()):
            name = file.relative_to(self.checkpoint)
            digest.update(f"{name} {file.stat().st_size}\n".encode())
            with file.open("rb") as content:
                digest.update(content.read(DIGESTED_BYTES))
        return digest.hexdigest()

    def spent(self) -> dict[str, Any]:
        """``tokens`` and ``flops`` up to the checkpoint, where the run's record has them."""
        for line in read_lines(self.folder / METRICS_FILE):
            if line["kind"] == "train" and line["iteration"] == self.iteration:
                return {"tokens": line["tokens"], "flops": line["flops"]}
        return {}


def _constant_since(folder: Path, arguments: Arguments, iteration: int) -> int:
    """The iterations of the warm-up.

    Raises:
        ValueError: the rate is not constant around ``iteration``; names the flag.
    """
    if arguments.get("train_samples"):
        raise ValueError(
            f"{folder} counts --train-samples: a branch goes on from one that counts --train-iters"
        )
    decay_iters = arguments.get("lr_decay_iters") or arguments["train_iters"]
    warmup = int((arguments.get("lr_warmup_fraction") or 0) * decay_iters) or arguments["lr_warmup_iters"]
    if iteration < warmup:
        raise ValueError(
            f"{folder} is still in its warm-up at iteration {iteration} (--lr-warmup-iters {warmup}): "
            "branch from a later checkpoint"
        )
    style = arguments["lr_decay_style"]
    constant_until = {"constant": iteration, "WSD": decay_iters - (arguments.get("lr_wsd_decay_iters") or 0)}
    if iteration > constant_until.get(style, -1):
        raise ValueError(
            f"the learning rate of {folder} has decayed before iteration {iteration} (--lr-decay-style "
            f"{style}): branch from a checkpoint at a constant rate, of --lr-decay-style constant or before "
            "WSD's decay"
        )
    return int(warmup)


def _without(words: Sequence[str], names: frozenset[str]) -> tuple[str, ...]:
    """A command line less these flags, by their arguments' names, and their values."""
    kept, keep = [], True
    for word in words:
        if word.startswith("--"):
            keep = word.partition("=")[0] not in map(flag, names)
        if keep:
            kept.append(word)
    return tuple(kept)


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One run of a family."""

    trunk: Trunk
    variant: str
    order: int
    """The --seed: with the weights given, nothing follows from it but the order of the data."""
    iterations: int
    longest: int
    """Iterations of the longest branch of the family: the data are ordered for it."""
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    def flags(self) -> list[str]:
        """The command line behind pretrain_phd.py.

        The rate falls linearly and not as 1 - sqrt: what the variant has and the trunk had not is learned
        at the rate that is left, of which a line has 1/2 in the mean and 1 - sqrt 1/3.
        """
        begin, end = self.trunk.iteration, self.trunk.iteration + self.iterations
        own: dict[str, Any] = {
            "--run-dir": self.folder,
            "--variant": self.variant,
            "--seed": self.order,
            "--train-iters": end,
            "--lr-warmup-iters": self.trunk.warmup_iters,
            "--lr-decay-style": "WSD",
            "--lr-decay-iters": end,
            "--lr-wsd-decay-style": "linear",
            "--lr-wsd-decay-iters": self.iterations,
            "--min-lr": 0,
        }
        if self.longest > self.iterations:
            own["--data-iters"] = begin + self.longest
        if self.trunk.arguments.get("wandb_project"):
            own["--wandb-exp-name"] = self.name
        words = [word for pair in own.items() for word in map(str, pair)]
        return [*self.trunk.flags, *words, "--override-phd-variant", "--override-opt-param-scheduler"]

    def prepare(
        self, digest: str, command: Sequence[str], more: Sequence[str], exports: Mapping[str, str]
    ) -> Path:
        """Prepare the folder for a start, unless it has been started already; returns its LAUNCHER.

        Args:
            digest: the trunk's.
            command: what starts pretrain_phd.py; the flags follow it.
            more: flags after those.
            exports: variables for the command, where the environment does not have them.

        Raises:
            ValueError: the folder is that of another branch, or of another run.
        """
        origin = {
            "trunk": self.trunk.folder.resolve().name,
            "checkpoint_sha256": digest,
            "iteration": self.trunk.iteration,
            "order": self.order,
            "iterations": self.iterations,
            "longest": self.longest,
            **self.trunk.spent(),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        self._refuse_another(origin)
        if not (self.folder / BRANCH_FILE).exists():
            write_json(self.folder / BRANCH_FILE, origin)
        saves = self.folder / "checkpoints"
        if not any(saves.glob("iter_*")):
            _link_checkpoint(self.trunk.checkpoint, saves)
            write_text(saves / TRACKER, str(self.trunk.iteration))
        lines = [f"export {name}=${{{name}:-{shlex.quote(value)}}}" for name, value in exports.items()]
        launcher = self.folder / LAUNCHER
        write_text(
            launcher,
            "\n".join(
                [
                    "# Starts this branch, or goes on with it; written by `phd branch`.",
                    *lines,
                    f"cd {shlex.quote(os.getcwd())} || exit",
                    f"exec {shlex.join([*command, *self.flags(), *more])}",
                    "",
                ]
            ),
        )
        return launcher

    def _refuse_another(self, origin: dict[str, Any]) -> None:
        before = read_json(self.folder / BRANCH_FILE)
        if not before and (self.folder / STATUS_FILE).exists():
            raise ValueError(f"{self.folder} is a run and no branch: take another --output")
        for key, value in origin.items():
            if before and key != "trunk" and before.get(key) != value:
                raise ValueError(
                    f"{self.folder} is a branch with {key} {before.get(key)}, not {value}: take another "
                    "--output, or the arguments of before"
                )


def _link_checkpoint(checkpoint: Path, saves: Path) -> None:
    """Hard links, which take no room and outlive the trunk's; copies on another file system."""
    unfinished = saves / f".{checkpoint.name}.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(checkpoint, unfinished, copy_function=_link_or_copy)
    unfinished.rename(saves / checkpoint.name)


def _link_or_copy(source: str, target: str) -> None:
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)


def plan(
    trunk: Trunk,
    variants: Sequence[str],
    orders: Sequence[int],
    *,
    iterations: int,
    longest: int | None,
    output: Path,
) -> list[Branch]:
    """The runs of a family, order by order.

    Raises:
        ValueError: a variant is unknown or does not fit the trunk's layers, or a number is too small.
    """
    if iterations < 1:
        raise ValueError(f"--iterations {iterations} trains nothing: give 1 or more")
    if longest is not None and longest < iterations:
        raise ValueError(f"--longest {longest} is less than --iterations {iterations}: raise it")
    if any(order < 1 for order in orders):
        raise ValueError(f"--orders {min(orders)} is no --seed that Megatron takes: give 1 or more")
    parsed = dict.fromkeys(Variant.parse(name) for name in variants)
    for variant in parsed:
        variant.layers(trunk.arguments["num_layers"])
    return [
        Branch(
            trunk=trunk,
            variant=str(variant),
            order=order,
            iterations=iterations,
            longest=longest or iterations,
            folder=output.resolve() / f"{variant}-order{order}",
        )
        for order in dict.fromkeys(orders)
        for variant in parsed
    ]
