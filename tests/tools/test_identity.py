"""What tools/identity.py says of two checkouts' numbers; that it computes them is seen by running it."""

import shlex
from pathlib import Path

import numpy as np
import pytest

from tools import identity
from tools.identity_worker import CASES, RESPELLED, flag_names, losses, spelled

LOSSES = np.array([6.25, 5.5, 5.0])
# What NEW has where OLD has LOSSES, and what is said.
CHANGES = {
    "another number": (LOSSES + [0, 0, 0.125], "lm loss[2]: 5.0 -> 5.125; 1 of 3 differ, by 0.125 at most"),
    "the last bit": (np.nextafter(LOSSES, 0), "lm loss[0]: 6.25 -> 6.249999999999999; 3 of 3 differ"),
    "fewer numbers": (LOSSES[:2], "lm loss: float64 [3] -> float64 [2]"),
    "another type": (LOSSES.astype(np.float32), "lm loss: float64 [3] -> float32 [3]"),
}


def files(folder: Path, old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> tuple[Path, Path]:
    for name, arrays in (("old", old), ("new", new)):
        np.savez(folder / name, allow_pickle=False, **arrays)
    return folder / "old.npz", folder / "new.npz"


def test_the_same_bits(tmp_path: Path):
    """Also of a number that is none."""
    arrays = {"lm loss": np.array([6.25, np.nan])}
    same, text = identity.verdict(*files(tmp_path, arrays, arrays))
    assert same
    assert text.startswith("identical, 2 numbers, sha256 ")


@pytest.mark.parametrize(("changed", "said"), CHANGES.values(), ids=CHANGES)
def test_the_first_difference(changed, said, tmp_path: Path):
    same, text = identity.verdict(*files(tmp_path, {"lm loss": LOSSES}, {"lm loss": changed}))
    assert not same
    assert text.startswith(said)


def test_numbers_of_one_side(tmp_path: Path):
    numbers = files(tmp_path, {"lm loss": LOSSES}, {"lm loss": LOSSES, "grad-norm": LOSSES})
    assert identity.verdict(*numbers) == (False, "grad-norm: in NEW alone")


def test_report(tmp_path: Path, capsys):
    """A line for losses and one for logits; what failed is a difference, with the end of its log."""
    for side in ("old", "new"):
        (tmp_path / side / "hybrid").mkdir(parents=True)
        np.savez(tmp_path / side / "hybrid" / "losses.npz", steps=LOSSES)
    np.savez(tmp_path / "old" / "hybrid" / "logits.npz", steps=LOSSES)
    (tmp_path / "new" / "hybrid" / "log").write_text("much\nValueError: no such layer\n\n")
    assert not identity.report(tmp_path / "old", tmp_path / "new", ["hybrid"])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("hybrid losses | identical, 3 numbers")
    assert second == "hybrid logits | failed in NEW: ValueError: no such layer"


def test_exit_status(tmp_path: Path, monkeypatch):
    """1 where something differs, and where OLD's checkpoints have not been read."""
    read = []

    def compute(checkout: Path, data: Path, output: Path, checkpoints: Path, cases: list[str]) -> None:
        assert data.with_suffix(".bin").stat().st_size
        read.append(checkpoints.name)
        (output / cases[0]).mkdir(parents=True)
        np.savez(output / cases[0] / "losses.npz", steps=LOSSES * (checkout.name == "first"))

    monkeypatch.setattr(identity, "compute", compute)
    for other, status in (("first", 0), ("second", 1)):
        arguments = [str(tmp_path / "first"), str(tmp_path / other), "--only", "vanilla"]
        assert identity.main(arguments) == status
    assert read == 4 * ["old"]


@pytest.mark.parametrize("words", RESPELLED)
def test_flags_as_a_checkout_knows_them(words):
    """Each spelling is needed, and is used as soon as one of the flags is not known."""
    case = next(case for case in CASES.values() if words in case.flags)
    known = set(flag_names(case.flags))
    assert spelled(case.flags, known) == shlex.split(case.flags)
    without = spelled(case.flags, known - {flag_names(words)[-1]})
    assert without == shlex.split(case.flags.replace(words, RESPELLED[words]))


def test_what_is_compared_of_a_record(tmp_path: Path):
    """Numbers of each kind of line, to the last bit; nothing of the clock."""
    lines = (
        '{"kind": "train", "iteration": 1, "time": 1.5, "lm loss": 6.137001037597656}',
        '{"kind": "train", "iteration": 2, "time": 2.5, "lm loss": null}',
        '{"kind": "validation", "iteration": 2, "time": 2.5, "lm loss validation": 6.0}',
    )
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    losses(tmp_path / "metrics.jsonl", tmp_path / "losses.npz")
    found = {name: array.tolist() for name, array in np.load(tmp_path / "losses.npz").items()}
    assert found.pop("train lm loss") == [6.137001037597656, pytest.approx(np.nan, nan_ok=True)]
    assert found == {
        "train iteration": [1, 2],
        "validation iteration": [2],
        "validation lm loss validation": [6.0],
    }
