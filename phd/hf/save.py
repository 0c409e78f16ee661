"""Write a Hugging Face folder tensor by tensor, in the memory of one shard. It appears whole or not at
all."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

SHARD_BYTES = 256_000_000
"""A shard of this size is closed: it bounds the memory that writing takes, beside the largest tensor."""


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``folder`` when all went well.

    Raises:
        ValueError: ``folder`` is there and not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already: choose another folder, or delete it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            path.chmod(0o755 if path.is_dir() else 0o644)  # made private, as temporary files are
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        temporary.replace(folder)
        parent = os.open(folder.parent, os.O_RDONLY)
        os.fsync(parent)
        os.close(parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_weights(
    tensors: Iterable[tuple[str, Tensor]],
    folder: Path,
    shard_bytes: int = SHARD_BYTES,
    report: Callable[[str], None] = lambda name: None,
) -> int:
    """Write model.safetensors, or several with their index.

    Args:
        report: called with each tensor's name when it has come.

    Returns:
        bytes of all tensors.
    """
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        nonlocal size
        if pending:
            path = folder / f"model-{len(shards) + 1:05d}.safetensors"
            save_file({name: x.contiguous() for name, x in pending.items()}, path, metadata={"format": "pt"})
            shards.append(list(pending))
            pending.clear()
            size = 0

    for name, tensor in tensors:
        pending[name] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
        report(name)
        if size >= shard_bytes:
            flush()
    flush()
    if len(shards) == 1:
        (folder / "model-00001.safetensors").rename(folder / "model.safetensors")
        return total
    weight_map: dict[str, str] = {}
    for index, names in enumerate(shards, 1):
        file = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"model-{index:05d}.safetensors").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    text = json.dumps(content, indent=2)
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return total
