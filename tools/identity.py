"""Whether two checkouts compute the same losses of a fixed seed and the same logits, bit for bit.

    python -m tools.identity OLD NEW [--only CASE ...]

Trains the cases of tools/identity_worker.py in each checkout on the CPU, one after the other, with one thread
a rank; two minutes in all. Both export the checkpoints that OLD has trained, so that logits differ only where
inference does, and NEW must read what OLD has saved. Prints for each case whether every number has the same
bits, or the first that has not. Exit status 1 if any differs. Where a flag has another spelling in NEW, enter
it in RESPELLED there.
"""

import argparse
import ast
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_tools.indexed import write_index
from tools import identity_worker
from tools.identity_worker import CASES
from tools.ports import held_ports

END_OF_DOCUMENT = 254  # of the NullTokenizer with 255 tokens


def write_data(prefix: Path) -> None:
    """A data set of lines of Python source, each a document: a sample holds several."""
    lines = Path(ast.__file__).read_bytes().splitlines()[:900]
    documents = [np.array([*line[:35], END_OF_DOCUMENT], dtype=np.uint16) for line in lines]
    prefix.with_suffix(".bin").write_bytes(np.concatenate(documents).tobytes())
    lengths = np.array([len(document) for document in documents])
    write_index(prefix.with_suffix(".idx"), np.dtype(np.uint16), [lengths])


def compute(checkout: Path, data: Path, output: Path, checkpoints: Path, cases: Sequence[str]) -> None:
    """Run the cases in ``checkout``.

    Raises:
        subprocess.CalledProcessError: it cannot run any.
    """
    output.mkdir()
    worker = [
        sys.executable,
        "-P",
        "-Wignore",
        identity_worker.__file__,
        *map(str, (checkout, data, output, checkpoints)),
    ]
    with held_ports(1) as (port,):
        settings = {
            "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "HF_HOME": str(output / "huggingface"),
        }  # fmt: skip
        subprocess.run([*worker, *cases], env=os.environ | settings, check=True)


def verdict(old: Path, new: Path) -> tuple[bool, str]:
    """Whether two files of arrays hold the same bits, and what to say of them."""
    for side, file in (("OLD", old), ("NEW", new)):
        if not file.is_file():
            return False, f"failed in {side}: {last_line(file.parent / 'log')}"
    before, after = dict(np.load(old)), dict(np.load(new))
    if only := sorted(before.keys() ^ after.keys()):
        return False, f"{', '.join(only)}: in {'OLD' if only[0] in before else 'NEW'} alone"
    for name, array in before.items():
        if text := difference(array, after[name]):
            return False, f"{name}{text}"
    digest = hashlib.sha256(b"".join(array.tobytes() for array in before.values())).hexdigest()
    return True, f"identical, {sum(array.size for array in before.values())} numbers, sha256 {digest[:16]}"


def difference(old: np.ndarray, new: np.ndarray) -> str:
    """Where two arrays first differ and by how much at most; nothing where their bits are the same."""
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        return f": {old.dtype} {list(old.shape)} -> {new.dtype} {list(new.shape)}"
    bits = np.dtype(f"u{old.itemsize}")
    differing = np.argwhere(old.view(bits) != new.view(bits))
    if not len(differing):
        return ""
    first = tuple(differing[0].tolist())
    most, largest = (np.nanmax(np.abs(values), initial=0) for values in (old - new, old))
    return (
        f"{list(first)}: {old[first]!s} -> {new[first]!s}; {len(differing)} of {old.size} differ, "
        f"by {most:.3g} at most, where the largest is {largest:.3g}"
    )


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    return next((line for line in reversed(lines) if line.strip()), "it has not come so far")


def report(old: Path, new: Path, cases: Sequence[str]) -> bool:
    """Print a line for the losses and one for the logits of each case; whether all are identical."""
    parts = [(name, "losses") for name in cases] + [(name, "logits") for name in cases if CASES[name].logits]
    width = max(len(f"{name} {part}") for name, part in parts)
    same = True
    for name, part in parts:
        identical, text = verdict(old / name / f"{part}.npz", new / name / f"{part}.npz")
        same = same and identical
        print(f"{f'{name} {part}':{width}} | {text}")
    return same


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.identity",
        description="Whether two checkouts compute the same losses and logits, bit for bit.",
    )
    parser.add_argument("old", type=Path, metavar="OLD", help="a checkout")
    parser.add_argument("new", type=Path, metavar="NEW", help="another, or the same again")
    parser.add_argument(
        "--only", nargs="+", choices=CASES, default=[*CASES], metavar="CASE", help=", ".join(CASES)
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="phd-identity-") as temporary:
        folder = Path(temporary).resolve()
        write_data(folder / "lines")
        for name, checkout in (("old", options.old), ("new", options.new)):
            compute(checkout.resolve(), folder / "lines", folder / name, folder / "old", options.only)
        return 0 if report(folder / "old", folder / "new", options.only) else 1


if __name__ == "__main__":
    sys.exit(main())
