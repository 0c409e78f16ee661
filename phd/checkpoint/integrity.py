"""Look at a checkpoint before Megatron loads it: is it whole, and safe to read?

Megatron would load a file with a flipped byte without a word, and stop on a torn one deep inside torch.
"""

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

from phd.checkpoint.read import iteration_of, read_item, read_metadata, saved_folders


def find_torn(folder: Path) -> str | None:
    """What is missing of a torch_dist checkpoint folder, naming the file; None for one with all its bytes."""
    torn, _ = _look_at(folder)
    return torn


def _look_at(folder: Path) -> tuple[str | None, list[Any]]:
    """What is missing, as in :func:`find_torn`, and the checkpoint's index of which file holds which
    tensor.
    """
    try:
        items = list(read_metadata(folder).storage_data.values())
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
            broken = zipfile.ZipFile(io.BytesIO(read_item(folder, item))).testzip()
        except zipfile.BadZipFile as error:
            broken = str(error)
        if broken:
            return f"{folder / item.relative_path} is corrupted near byte {item.offset} (checksum: {broken})"
    return None


def whole_checkpoints(root: Path) -> list[int]:
    """Iterations of the checkpoints in ``root`` that have all their bytes, newest first."""
    return [iteration_of(folder) for folder in saved_folders(root) if find_torn(folder) is None]
