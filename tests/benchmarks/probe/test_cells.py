"""The file of finished cells: taken up again after a cut, refused under another plan."""

import pytest

from benchmarks.probe.cells import Cells

PLAN = {"seeds": (1, 2)}


def test_cells_are_taken_up_again(tmp_path):
    path = tmp_path / "cells.jsonl"
    Cells(path, PLAN).add({"seed": 1})
    with path.open("a") as file:
        file.write('{"seed": 2, "accu')  # killed while writing
    again = Cells(path, PLAN)
    assert again.done == [{"seed": 1}]
    again.add({"seed": 2})
    assert Cells(path, PLAN).done == [{"seed": 1}, {"seed": 2}]


def test_a_cut_in_the_first_line(tmp_path):
    path = tmp_path / "cells.jsonl"
    path.write_text('{"pl')
    Cells(path, PLAN).add({"seed": 1})
    assert Cells(path, PLAN).done == [{"seed": 1}]


def test_another_plan_is_refused(tmp_path):
    path = tmp_path / "cells.jsonl"
    Cells(path, PLAN)
    with pytest.raises(ValueError, match=f"--cells {path} does not begin with the plan .* move it away"):
        Cells(path, {"seeds": (1, 3)})


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a note\n", "does not begin with the plan"),
        ("a note without an end", "does not begin with the plan"),
        ('{"plan": {"seeds": [1, 2]}}\nno json\n{"torn', "not JSON"),
    ],
)
def test_a_file_of_something_else_is_left_alone(tmp_path, text, match):
    path = tmp_path / "cells.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=match):
        Cells(path, PLAN)
    assert path.read_text() == text
