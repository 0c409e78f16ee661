"""PREFIX.units, the folder of a run's work: its plan, and the shards of the units, until they are merged."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_tools.cards import refuse_difference
from data_tools.files import is_locked, write_json
from data_tools.inputs import Source
from data_tools.units import Unit, plan_units, unit_bytes

UNIT_FILE = re.compile(r"[0-9a-f]{16}\..+")
"""What a file of a work unit is called, see ``units.Unit.name``."""
PLAN_FILE = re.compile(r"plan\.json(\..+\.tmp)?")


def make_plan(
    folder: Path,
    made_from: dict[str, Any],
    sources: Sequence[Source],
    unit_size: int | None,
    txt_is_split: bool,
) -> tuple[list[Unit], str]:
    """Cut the inputs into units and write the plan; an earlier one has to be for the same options and paths.

    The content of an input may have changed since then, when a bad record was mended. With the size of units
    as it was, the cuts in all other files are the same, and their shards are found again.

    Returns:
        the units, and a digest of the options, which is in the cards of their shards.
    """
    file = folder / "plan.json"
    earlier = read_plan(folder)
    if earlier is not None:
        before, inputs = earlier["made_from"], made_from["inputs"]
        changed = 0
        if [each["path"] for each in before["inputs"]] == [each["path"] for each in inputs]:
            changed = sum(old != new for old, new in zip(before["inputs"], inputs, strict=True))
            before = before | {"inputs": inputs}
        wanted = {**made_from, "unit_bytes": unit_size or earlier["unit_bytes"]}
        try:
            refuse_difference(file, before | {"unit_bytes": earlier["unit_bytes"]}, wanted, str(folder))
        except ValueError:
            if _holds_documents(folder):
                raise
            # A first command with a wrong field, say: nothing is lost with it. Shards that it left have its
            # options in their cards, and are made again.
            print(f"{file} was for other options or inputs, and no document was written: made anew")
        else:
            unit_size = wanted["unit_bytes"]
            if changed:
                print(f"{changed:,} of {len(inputs):,} inputs have changed: the units of the others are kept")
    unit_size = unit_size or unit_bytes(sources)
    units = plan_units(sources, unit_size, txt_is_split=txt_is_split)
    parameters = {name: value for name, value in made_from.items() if name != "inputs"}
    options = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()
    names = [unit.name for unit in units]
    plan = {"made_from": made_from, "unit_bytes": unit_size, "options": options, "units": names}
    if plan != earlier:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, plan)
    return units, options


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The plan in a folder of work; None if there is none.

    Raises:
        ValueError: the file is something else.
    """
    file = folder / "plan.json"
    if not file.is_file():
        return None
    try:
        plan = json.loads(file.read_text(encoding="utf-8"))
        if {"made_from", "unit_bytes", "options", "units"} <= plan.keys() and plan["made_from"]["inputs"]:
            return plan
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(
        f"{file} is no plan of `phd data tokenize`: choose another --output-prefix, or move it away"
    )


def _holds_documents(folder: Path) -> bool:
    """Whether a shard with a document is finished, or a process is writing one."""
    for file in _unit_files(folder):
        if file.name.endswith(".json"):
            try:
                if json.loads(file.read_text(encoding="utf-8"))["documents"]:
                    return True
            except (ValueError, KeyError, TypeError):
                continue  # torn: no shard
        elif file.name.endswith(".bin.tmp") and is_locked(file):
            return True
    return False


def _unit_files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.iterdir() if UNIT_FILE.fullmatch(file.name) and not file.is_dir())


def delete_work(folder: Path) -> None:
    """Delete a folder of work units with all files that `tokenize` names; what else lies in it is kept."""
    if not folder.is_dir():
        return
    for file in list(_unit_files(folder)):
        file.unlink(missing_ok=True)
    # The plan comes last: while it is there, the folder is known for what it is.
    for file in [file for file in folder.iterdir() if PLAN_FILE.fullmatch(file.name)]:
        file.unlink(missing_ok=True)
    kept = sum(1 for _ in folder.iterdir())
    if kept or folder.is_symlink():
        print(f"{folder} is not deleted: {f'{kept:,} files in it are others' if kept else 'it is a link'}")
    else:
        folder.rmdir()
