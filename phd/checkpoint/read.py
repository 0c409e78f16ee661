"""Read what Megatron has saved: where the checkpoints lie, with which arguments they were trained, and their
tensors.
"""

import io
import pickle
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from megatron.core.safe_globals import register_safe_globals
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

# All that Megatron's torch_dist metadata is made of; anything else in it is not ours to execute.
_METADATA_CLASSES = {
    "torch": r"Size|device|bfloat16|float\w*|u?int\d+|bool|complex\d+",
    "torch.serialization": "_get_layout",
    "torch.distributed.checkpoint.filesystem": "_StorageInfo",
    "torch.distributed.checkpoint.metadata": r"\w+",
    "torch.distributed.checkpoint.planner": r"SavePlan|WriteItem(Type)?|TensorWriteData|BytesIOWriteData",
}


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if not re.fullmatch(_METADATA_CLASSES.get(module, "(?!)"), name):
            raise pickle.UnpicklingError(f"refusing to run {module}.{name}")
        return super().find_class(module, name)


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
    for index, item in read_metadata(folder).storage_data.items():
        if index.fqn.startswith("common_state/"):
            common = torch.load(io.BytesIO(read_item(folder, item)), weights_only=True)
            return common[0]["args"]
    raise ValueError(f"{folder} holds no training arguments: not a checkpoint of Megatron-Core 0.19")


def read_metadata(folder: Path) -> Metadata:
    """The checkpoint's index: which file holds which tensor, and where in it."""
    with open(folder / ".metadata", "rb") as file:
        return _MetadataUnpickler(file).load()


def read_item(folder: Path, item: Any) -> bytes:
    """The bytes of one item of its ``storage_data``."""
    with open(folder / item.relative_path, "rb") as file:
        file.seek(item.offset)
        return file.read(item.length)


class CheckpointTensors:
    """The model's tensors in a torch_dist checkpoint of any layout, read one at a time and never executed.

    Layers lie stacked in it: ``decoder.layers.mlp.linear_fc2.weight`` is [layers, ...].
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        metadata = read_metadata(folder)
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
            item = read_item(self.folder, self._items[name, chunk.offsets])
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
