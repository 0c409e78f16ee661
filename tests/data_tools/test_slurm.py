"""Rank and world size from what SLURM sets."""

import pytest

from data_tools.slurm import choose_rank


def array(task, count, first, last, step=1):
    return {
        "SLURM_ARRAY_TASK_ID": str(task),
        "SLURM_ARRAY_TASK_COUNT": str(count),
        "SLURM_ARRAY_TASK_MIN": str(first),
        "SLURM_ARRAY_TASK_MAX": str(last),
        "SLURM_ARRAY_TASK_STEP": str(step),
    }


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, (0, 1)),  # the batch script itself, before srun
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_STEP_ID": "0"}, (3, 4)),
        (array(5, 8, 0, 7), (5, 8)),
        (array(3, 4, 1, 4), (2, 4)),
        (array(6, 4, 0, 6, 2), (3, 4)),
        (array(1, 2, 0, 1) | {"SLURM_NTASKS": "3", "SLURM_PROCID": "2", "SLURM_STEP_ID": "0"}, (5, 6)),
    ],
    ids=["none", "batch", "srun", "array", "from-one", "steps", "both"],
)
def test_from_slurm(environment, expected):
    assert choose_rank(None, None, True, environment) == expected


def test_given_wins():
    assert choose_rank(1, 2, False, array(5, 8, 0, 7)) == (1, 2)
    with pytest.raises(ValueError, match="give the one or the others"):
        choose_rank(1, 2, True, array(5, 8, 0, 7))


@pytest.mark.parametrize(
    "environment",
    [
        array(3, 8, 0, 7),
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "3", "SLURM_STEP_ID": "0"},
        array(1, 4, 0, 3) | {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_ID": "0"},
    ],
    ids=["array", "srun", "both"],
)
def test_a_share_has_to_be_asked_for(environment):
    """In an array that is for something else a fraction of the data set would look done."""
    with pytest.raises(ValueError, match=r"task 3 of 8 .* --slurm .*--rank 0 --world-size 1"):
        choose_rank(None, None, False, environment)
    assert choose_rank(None, None, True, environment) == (3, 8)
    assert choose_rank(0, 1, False, environment) == (0, 1)


def test_one_task_does_all_of_it():
    for environment in (array(7, 1, 7, 7), {"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}):
        assert choose_rank(None, None, False, environment) == (0, 1)


def test_refused():
    with pytest.raises(ValueError, match="give both or none"):
        choose_rank(1, None, False, {})
    with pytest.raises(ValueError, match="3 tasks between 3 and 9"):
        choose_rank(None, None, True, array(7, 3, 3, 9))
