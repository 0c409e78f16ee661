"""Which checkpoints of a run stay on the disk: none is removed before another is whole."""

import shutil
from pathlib import Path

from phd.checkpoint.read import iteration_folder, iteration_of, saved_folders
from phd.run.status import newest_checkpoint

AGAIN = "again"
"""The folder, beside the checkpoints, of a save that will replace a whole checkpoint."""


def clear_place(save: Path, iteration: int) -> None:
    """Before a save: remove what an interrupted save left at its place, which torch would write into."""
    shutil.rmtree(save / AGAIN, ignore_errors=True)
    folder = iteration_folder(save, iteration)
    if folder.is_dir():
        _remove(folder)


def replace_checkpoint(save: Path, iteration: int) -> None:
    """Put the checkpoint in AGAIN in the place of the one of that iteration."""
    place = iteration_folder(save, iteration)
    place.rename(save / AGAIN / "replaced")
    iteration_folder(save / AGAIN, iteration).rename(place)
    shutil.rmtree(save / AGAIN)


def remove_torn(save: Path) -> None:
    """Remove what interrupted saves left."""
    shutil.rmtree(save / AGAIN, ignore_errors=True)
    for folder in saved_folders(save):
        if not (folder / ".metadata").exists():
            _remove(folder, ignore_errors=True)


def remove_old(save: Path, keep: int) -> None:
    """Keep the newest ``keep`` of the checkpoints that are complete by the tracker file."""
    newest = newest_checkpoint(save)
    for folder in [folder for folder in saved_folders(save) if iteration_of(folder) <= newest][keep:]:
        _remove(folder, ignore_errors=True)


def _remove(folder: Path, ignore_errors: bool = False) -> None:
    """Remove a checkpoint, unless it is a link to one that lies elsewhere."""
    if not folder.is_symlink():
        (folder / ".metadata").unlink(missing_ok=True)  # first: from now on it is no checkpoint
        shutil.rmtree(folder, ignore_errors=ignore_errors)
