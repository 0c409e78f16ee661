"""One W&B run for all starts of a run: its id lies in the run folder."""

import os
import uuid
from pathlib import Path

from phd.run.files import read_json, write_json
from phd.run.recorder import WANDB_FILE


def name_run(folder: Path) -> None:
    """Tell wandb.init(), which Megatron calls without them, the id and the group, unless the user has."""
    about = read_json(folder / WANDB_FILE)
    if "id" not in about:
        about["id"] = os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8]
        write_json(folder / WANDB_FILE, about)
    os.environ["WANDB_RUN_ID"] = about["id"]
    os.environ.setdefault("WANDB_RESUME", "allow")
    os.environ.setdefault("WANDB_RUN_GROUP", folder.resolve().parent.name)
