"""Exported models of one shape as one, whose weights are a weighted mean of theirs."""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from phd.hf.load import FolderTensors, open_folder
from phd.hf.save import new_folder, save_weights

CONTEXT = ("rope_theta", "rope_parameters", "rope_scaling", "max_position_embeddings")
"""Fields of config.json that an extension changes: models that differ in them are merged, by the first's."""
UNWEIGHED = {
    *(
        "architectures",
        "auto_map",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "_name_or_path",
    ),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
}
"""Fields that the weights have nothing to do with."""
TOLERANCE = 1e-6
WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
WRITTEN = ("model.safetensors.index.json", "training.json", "README.md")


def merge(
    folders: Sequence[Path], weights: Sequence[float], output: Path, names: Sequence[str] | None = None
) -> tuple[int, list[str]]:
    """Write ``output``: the first folder's files with the mean of all folders' weights.

    Sums are in fp32 (fp64 of fp64), rounded once to the type of the first folder's tensor. A folder of weight
    0 is not read, so that (1, 0) leaves the first one's weights bit for bit.

    Args:
        folders: at least two.
        weights: of each; they add up to 1.
        output: not there yet, or empty.
        names: what the folders are to be called; None for their paths.

    Returns:
        bytes of the weights, and in words what was taken from the first folder where another differs.

    Raises:
        ValueError: a folder is damaged (see ``open_folder``), the weights are none, two folders have other
            shapes, architectures or tokenizers, or ``output`` is there.
    """
    names = [*map(str, folders)] if names is None else names
    check_weights(names, weights)
    opened = [open_folder(folder) for folder in folders]
    first_config, first, _ = opened[0]
    told = []
    for name, folder, (config, tensors, _) in zip(names[1:], folders[1:], opened[1:], strict=True):
        _refuse_other_shapes(names[0], first.shapes(), name, tensors.shapes())
        told += _compare_configs(names[0], first_config, name, config)
        _refuse_other_tokenizer(names[0], folders[0], name, folder)
    with new_folder(output) as temporary:
        for file in folders[0].iterdir():
            if file.is_file() and not file.name.endswith(WEIGHT_FILES) and file.name not in WRITTEN:
                shutil.copyfile(file, temporary / file.name)
        total = save_weights(_mean([tensors for _, tensors, _ in opened], weights), temporary)
        facts = [
            {"folder": name, "weight": weight, "training": _training(folder)}
            for name, folder, weight in zip(names, folders, weights, strict=True)
        ]
        text = json.dumps({"merged_from": facts}, indent=2)
        (temporary / "training.json").write_text(text + "\n", encoding="utf-8")
        (temporary / "README.md").write_text(_card(names, weights, told), encoding="utf-8")
    return total, told


def check_weights(models: Sequence[object], weights: Sequence[float]) -> None:
    """Raises:
    ValueError: there are not two models, or the weights are no shares of them.
    """
    if len(models) < 2:
        raise ValueError("name at least two models to merge")
    if len(weights) != len(models):
        raise ValueError(f"--weights has {len(weights)} numbers for {len(models)} models: give one for each")
    if not all(map(math.isfinite, weights)) or abs(math.fsum(weights) - 1) > TOLERANCE:
        raise ValueError(f"--weights {' '.join(map(str, weights))}: they must be numbers that add up to 1")


def _refuse_other_shapes(
    first: str, shapes: dict[str, tuple[int, ...]], other: str, theirs: dict[str, tuple[int, ...]]
) -> None:
    for name in sorted(shapes.keys() | theirs.keys()):
        if (here := shapes.get(name)) != (there := theirs.get(name)):
            told = [
                f"{model} has {'none' if shape is None else list(shape)}"
                for model, shape in ((first, here), (other, there))
            ]
            raise ValueError(f"{name}: {', '.join(told)}: only models of one shape can be merged")


def _compare_configs(first: str, config: LlamaConfig, other: str, their_config: LlamaConfig) -> list[str]:
    """What is taken from the first model, in words; ValueError where neither would be right."""
    mine, theirs = config.to_dict(), their_config.to_dict()
    told = []
    for name in sorted((mine.keys() | theirs.keys()) - UNWEIGHED):
        if (here := mine.get(name)) == (there := theirs.get(name)):
            continue
        if name not in CONTEXT:
            raise ValueError(
                f"config.json: {name} is {here} in {first} and {there} in {other}: only models of one "
                "architecture can be merged"
            )
        told.append(f"{name} {here} of {first}; {other} has {there}")
    return told


def _refuse_other_tokenizer(first: str, first_folder: Path, other: str, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer.model"):
        here, there = first_folder / name, folder / name
        if here.is_file() and there.is_file() and _content(here) != _content(there):
            raise ValueError(
                f"{first} and {other} have different tokenizers ({name}): only models of one vocabulary can "
                "be merged"
            )


def _content(file: Path) -> Any:
    """What of a tokenizer's file decides on ids: not how long a text it takes."""
    if file.suffix != ".json":
        return file.read_bytes()
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {name: content[name] for name in content if name not in ("truncation", "padding")}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is not a tokenizer ({error})") from error


def _mean(folders: Sequence[FolderTensors], weights: Sequence[float]) -> Iterator[tuple[str, Tensor]]:
    for name in folders[0].shapes():
        total: Tensor | None = None
        dtype = torch.float32
        for folder, weight in zip(folders, weights, strict=True):
            if weight == 0 and folder is not folders[0]:
                continue
            tensor = folder.get(name)
            if folder is folders[0]:
                dtype = tensor.dtype
            if weight == 0:
                continue
            part = tensor.to(torch.promote_types(tensor.dtype, torch.float32)) * weight
            total = part if total is None else total + part
        assert total is not None  # the weights add up to 1
        yield name, total.to(dtype)


def _training(folder: Path) -> Any:
    """What ``phd export`` tells of its training; None of a folder from elsewhere."""
    file = folder / "training.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error})") from error


def _card(names: Sequence[str], weights: Sequence[float], told: Sequence[str]) -> str:
    rows = "".join(f"| {name} | {weight:g} |\n" for name, weight in zip(names, weights, strict=True))
    taken = "".join(f"- {line}\n" for line in told)
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---

# A mean of models

Its weights are those of these models, each times its share, by `phd merge`; all the rest is the first one's.

| model | share |
|---|---|
{rows}
{taken}"""
