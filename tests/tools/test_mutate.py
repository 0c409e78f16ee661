"""The table of mutations fits the code as it is, and tools/mutate.py tells what a test notices."""

import subprocess
from pathlib import Path

import pytest

from tests.mutations import MUTATIONS, Mutation
from tests.world import ROOT
from tools import mutate

CODE = "def double(x):\n    return 2 * x\n\n\ndef triple(x):\n    return 3 * x\n"
TESTS = """
import pytest
from code_here import double, triple


def test_double():
    assert double(2) == 4


@pytest.mark.slow
def test_triple():
    assert triple(2) == 6
"""
SETTINGS = '[tool.pytest.ini_options]\nmarkers = ["gpu", "slurm", "slow"]\n'


@pytest.fixture
def tree(tmp_path) -> Path:
    """A repository of one module and its tests; git does not know them yet."""
    for name, text in (("code_here.py", CODE), ("test_it.py", TESTS), ("pyproject.toml", SETTINGS)):
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    return tmp_path


def mutation(old: str, new: str, tests: str = "test_it.py") -> Mutation:
    return Mutation("one", "code_here.py", old, new, tests)


def test_every_mutation_applies():
    """Where the code has moved, so must the table."""
    off = [each.name for each in MUTATIONS if (ROOT / each.file).read_text().count(each.old) != 1]
    assert off == []
    assert all(each.old != each.new for each in MUTATIONS)


def test_their_tests_are_there():
    for each in MUTATIONS:
        assert each.tests
        for test in each.tests.split():
            file, _, function = test.partition("::")
            begins = f"def {function}(" if function else "def test_"
            assert (ROOT / file).is_file() and begins in (ROOT / file).read_text(), (each.name, test)


def test_names_differ():
    assert len({each.name for each in MUTATIONS}) == len(MUTATIONS)


def test_what_the_tests_say(tree):
    """Caught by a test of the default lane; not by one that is slow; and the tree stays as it was."""
    caught = mutate.try_mutation(mutation("2 * x", "2 + x + 1"), tree)
    assert (caught.state, caught.detail) == ("caught", "test_it.py::test_double - assert 5 == 4")
    assert mutate.try_mutation(mutation("3 * x", "x"), tree).state == "SURVIVED"
    assert (tree / "code_here.py").read_text() == CODE
    assert not (tree / "__pycache__").exists()


@pytest.mark.parametrize("old", ["5 * x", "* x"], ids=["never", "twice"])
def test_a_text_that_is_not_there_once(old, tree):
    assert mutate.try_mutation(mutation(old, "x"), tree).state == "DOES NOT APPLY"


def test_tests_that_do_not_run_have_caught_nothing(tree):
    assert mutate.try_mutation(mutation("2 * x", "2 *"), tree).state == "NO RESULT"


def test_without_a_mutation_they_pass(tree):
    assert mutate.try_nothing([mutation("2 * x", "x")], tree).state == "SURVIVED"


def test_exit_status(monkeypatch, capsys):
    """1 unless all are caught."""
    states = iter(["caught", "caught", "SURVIVED"])
    monkeypatch.setattr(mutate, "try_mutation", lambda each: mutate.Result(next(states), "", 0.0))
    first, second, third = (each.name for each in MUTATIONS[:3])
    assert mutate.main([first, second]) == 0
    assert mutate.main([third]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if " s " in line] == [first, second, third]
    assert lines[-1] == "0 of 1 mutations caught"


def test_names(capsys):
    assert mutate.main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(MUTATIONS)
    with pytest.raises(SystemExit):
        mutate.main(["no-such-mutation"])
    assert "no mutation is called no-such-mutation" in capsys.readouterr().err
