"""Tensors of a Hugging Face folder, read one at a time, checked against its configuration first."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, LlamaConfig

import phd.hf  # noqa: F401 (registers our configuration)
from phd.hf.convert import check_names
from phd.hf.foreign import check_folder


class FolderTensors:
    """The safetensors of a folder, whole or in shards.

    Raises:
        ValueError: a file is missing, torn or not safetensors; names it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = folder / "model.safetensors.index.json"
        single = folder / "model.safetensors"
        if index.is_file():
            try:
                names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            except (ValueError, KeyError) as error:
                raise ValueError(f"{index} is not an index of safetensors ({error})") from error
            self._files = {name: folder / file for name, file in names.items()}
        elif single.is_file():
            self._files = dict.fromkeys(self._open(single).keys(), single)
        else:
            raise ValueError(
                f"{folder} has no model.safetensors: save the model with safe_serialization=True"
            )
        self._handles = {file: self._open(file) for file in set(self._files.values())}
        for name, file in self._files.items():
            if name not in set(self._handles[file].keys()):
                raise ValueError(f"{file}: the tensor {name} is missing")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            name: tuple(self._handles[file].get_slice(name).get_shape()) for name, file in self._files.items()
        }

    def get(self, name: str) -> Tensor:
        return self._handles[self._files[name]].get_tensor(name)

    @staticmethod
    def _open(file: Path) -> safe_open:
        try:
            return safe_open(file, framework="pt")
        except FileNotFoundError as error:
            raise ValueError(f"{file} is missing") from error
        except SafetensorError as error:
            raise ValueError(f"{file} is torn or not a safetensors file ({error})") from error


def open_folder(folder: Path) -> tuple[LlamaConfig, FolderTensors, torch.dtype]:
    """Configuration, tensors and their dtype of a Llama or PHDLlama folder.

    Raises:
        ValueError: a file is missing or damaged, or asks for code or files of somewhere else; a tensor is
            missing or of a wrong shape; names it.
    """
    check_folder(folder)
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{file} is not there: {folder} is not a Hugging Face model")
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:  # validation raises classes of its own
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from error  # theirs are of several lines
    if not isinstance(config, LlamaConfig):
        raise ValueError(f"{file}: model_type is {config.model_type!r}, not llama or phd_llama")
    tensors = FolderTensors(folder)
    shapes = tensors.shapes()
    try:
        check_names(shapes, config)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    return config, tensors, tensors.get("model.norm.weight").dtype
