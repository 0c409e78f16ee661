"""Look at a checkpoint before Megatron loads it: is it whole, and safe to read?

Megatron would load a file with a flipped byte without a word, and stop on a torn one deep inside torch.
"""

import io
import json
import pickle
import re
import zipfile
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from megatron.core.safe_globals import register_safe_globals
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from phd.run.files import write_text
from phd.run.status import TRACKER

# All that Megatron's torch_dist metadata is made of; anything else in it is not ours to execute.
_METADATA_CLASSES = {
    "torch": r"Size|device|bfloat16|float\w*|u?int\d+|bool|complex\d+",
    "torch.serialization": "_get_layout",
    "torch.distributed.checkpoint.filesystem": "_StorageInfo",
    "torch.distributed.checkpoint.metadata": r"\w+",
    "torch.distributed.checkpoint.planner": r"SavePlan|WriteItem(Type)?|TensorWriteData|BytesIOWriteData",
}


@dataclass(kw_only=True)
class PHDCheckpointConfig:
    """Continuing from the checkpoint of another variant."""

    override_phd_variant: bool = False
    """Continue from a checkpoint that was trained with another --phd-copies, --phd-window, --phd-chunk,
    --phd-naive or --attention-pattern. Refused without this flag."""


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if not re.fullmatch(_METADATA_CLASSES.get(module, "(?!)"), name):
            raise pickle.UnpicklingError(f"refusing to run {module}.{name}")
        return super().find_class(module, name)


def settle_checkpoint(args: Namespace) -> None:
    """Check what Megatron will load, every rank for itself and with the same result.

    Where the checkpoint of --load is not whole, as after a kill or a full disk, the newest whole one before
    it takes its place, with a warning. One that was asked for by --ckpt-step is not replaced.

    Raises:
        ValueError: there is no whole checkpoint where one was saved; or one is unsafe to read.
    """
    args.ckpt_step_given = args.ckpt_step is not None
    source = checkpoint_source(args)
    root = getattr(args, source)
    folder = chosen_folder(Path(root), args.ckpt_step) if root else None
    if folder is None:
        return  # nothing there yet: the first start of a run that loads from where it saves
    if args.ckpt_step_given and not folder.exists():
        raise ValueError(
            f"there is no checkpoint of iteration {args.ckpt_step} (--ckpt-step) in {root}. "
            f"{_advice(folder.parent, whole_checkpoints(folder.parent), source, 'leave --ckpt-step out')}"
        )
    _refuse_other_format(folder)
    if problem := find_torn(folder):
        folder = fall_back(args, source, folder, problem)


def fall_back(args: Namespace, source: str, folder: Path, problem: str) -> Path:
    """Let Megatron load the newest whole checkpoint before the damaged one in ``folder``, with a warning. Not
    a later one: whoever wrote the iteration into the tracker file wanted to go back to it.

    Raises:
        ValueError: there is none; or the damaged one was asked for by --ckpt-step or is not the run's own.
    """
    before = [step for step in whole_checkpoints(folder.parent) if step < iteration_of(folder)]
    if args.ckpt_step_given or source != "load" or not before:
        raise damaged(folder, problem, before, source)
    args.ckpt_step = before[0]
    if args.rank == 0:
        print(
            f"> WARNING: the checkpoint {folder} is damaged: {problem}; continuing from iteration {before[0]}"
        )
    return iteration_folder(folder.parent, before[0])


def checkpoint_source(args: Namespace) -> Literal["load", "pretrained_checkpoint"]:
    """The argument whose folder Megatron will load from: --pretrained-checkpoint as long as the run has no
    checkpoint of its own, and never afterwards.
    """
    load = args.load and Path(args.load)
    # A tracker that a kill has left empty, or somebody lost, is mended before the loading, if there is a
    # whole checkpoint beside it.
    own = load and (_tracker_text(load) or whole_checkpoints(load))
    return "pretrained_checkpoint" if args.pretrained_checkpoint and not own else "load"


def find_torn(folder: Path) -> str | None:
    """What is missing of a torch_dist checkpoint folder, naming the file; None for one with all its bytes."""
    torn, _ = _look_at(folder)
    return torn


def _look_at(folder: Path) -> tuple[str | None, list[Any]]:
    """What is missing, as :func:`find_torn` says it, and what lies where in the files."""
    try:
        items = list(_read_metadata(folder).storage_data.values())
    except FileNotFoundError as missing:
        return f"{missing.filename} is missing", []
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, ValueError, KeyError) as error:
        return f"{folder / '.metadata'} cannot be read ({error})", []
    about = folder / "metadata.json"  # written last; Megatron does not load without it
    try:
        json.loads(about.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{about} is missing", items
    except ValueError as error:
        return f"{about} cannot be read ({error})", items
    ends: dict[str, int] = {}
    for item in items:
        ends[item.relative_path] = max(ends.get(item.relative_path, 0), item.offset + item.length)
    for name, end in sorted(ends.items()):
        path = folder / name
        if not path.is_file():
            return f"{path} is missing", items
        if path.stat().st_size < end:
            return f"{path} ends after {path.stat().st_size} of {end} bytes", items
    return None, items


def find_damage(folder: Path, rank: int = 0, world_size: int = 1) -> str | None:
    """What is wrong with a torch_dist checkpoint folder, naming the file; None for a whole one.

    Sizes are checked by every rank; the CRC-32 that torch stores with each tensor, for every
    ``world_size``-th one from ``rank``.
    """
    torn, items = _look_at(folder)
    if torn:
        return torn
    items.sort(key=lambda item: (item.relative_path, item.offset))
    for item in items[rank::world_size]:
        try:
            broken = zipfile.ZipFile(io.BytesIO(_read_item(folder, item))).testzip()
        except zipfile.BadZipFile as error:
            broken = str(error)
        if broken:
            return f"{folder / item.relative_path} is corrupted near byte {item.offset} (checksum: {broken})"
    return None


def whole_checkpoints(root: Path) -> list[int]:
    """Iterations of the checkpoints in ``root`` that have all their bytes, newest first."""
    return [iteration_of(folder) for folder in saved_folders(root) if find_torn(folder) is None]


def saved_folders(root: Path) -> list[Path]:
    """The checkpoints in ``root``, newest first, whole or not."""
    return sorted(root.glob("iter_" + "[0-9]" * 7), reverse=True)


def iteration_of(folder: Path) -> int:
    """The iteration that a checkpoint folder is called after."""
    return int(folder.name.removeprefix("iter_"))


def iteration_folder(root: Path, iteration: int) -> Path:
    """Where the checkpoint of an iteration lies."""
    return root / f"iter_{iteration:07d}"


def read_args(folder: Path) -> Namespace:
    """The arguments a checkpoint was trained with, read without executing anything."""
    register_safe_globals()
    for index, item in _read_metadata(folder).storage_data.items():
        if index.fqn.startswith("common_state/"):
            common = torch.load(io.BytesIO(_read_item(folder, item)), weights_only=True)
            return common[0]["args"]
    raise ValueError(f"{folder} holds no training arguments: not a checkpoint of Megatron-Core 0.19")


def _read_metadata(folder: Path) -> Metadata:
    with open(folder / ".metadata", "rb") as file:
        return _MetadataUnpickler(file).load()


def _read_item(folder: Path, item: Any) -> bytes:
    with open(folder / item.relative_path, "rb") as file:
        file.seek(item.offset)
        return file.read(item.length)


class CheckpointTensors:
    """The model's tensors in a torch_dist checkpoint of any layout, read one at a time and never executed.

    Layers lie stacked in it: ``decoder.layers.mlp.linear_fc2.weight`` is [layers, ...].
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        metadata = _read_metadata(folder)
        self._tensors = {
            name: entry
            for name, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata) and not name.startswith(("optimizer.", "chained_"))
        }
        self._items = {(index.fqn, index.offset): item for index, item in metadata.storage_data.items()}

    def shape(self, name: str) -> torch.Size:
        return self._tensors[name].size

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].properties.dtype

    def read(self, name: str, layer: int | None = None) -> torch.Tensor:
        """A tensor, or the part of a stacked one that is ``layer``'s.

        Raises:
            ValueError: it is not in the checkpoint, or a part of it is not.
        """
        if name not in self._tensors:
            raise ValueError(f"the checkpoint {self.folder} has no tensor {name}")
        entry = self._tensors[name]
        whole = torch.empty(entry.size if layer is None else entry.size[1:], dtype=entry.properties.dtype)
        filled = 0
        for chunk in entry.chunks:
            first = chunk.offsets[0] if chunk.offsets else 0
            if layer is not None and not first <= layer < first + chunk.sizes[0]:
                continue
            item = _read_item(self.folder, self._items[name, chunk.offsets])
            part = torch.load(io.BytesIO(item), weights_only=True)
            offsets, sizes = chunk.offsets, chunk.sizes
            if layer is not None:
                part, offsets, sizes = part[layer - first], offsets[1:], sizes[1:]
            place = tuple(slice(a, a + n) for a, n in zip(offsets, sizes, strict=True))
            whole[place] = part
            filled += part.numel()
        if filled != whole.numel():
            raise ValueError(
                f"the checkpoint {self.folder} holds {filled} of the {whole.numel()} numbers of {name}"
            )
        return whole


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
