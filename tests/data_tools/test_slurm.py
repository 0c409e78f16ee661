"""Rank and world size from what SLURM sets."""

import pytest

from data_tools.slurm import default_rank


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
    assert default_rank(None, None, environment) == expected


def test_given_wins():
    assert default_rank(1, 2, array(5, 8, 0, 7)) == (1, 2)


def test_refused():
    with pytest.raises(ValueError, match="give both or none"):
        default_rank(1, None, {})
    with pytest.raises(ValueError, match="3 tasks between 3 and 9"):
        default_rank(None, None, array(7, 3, 3, 9))
