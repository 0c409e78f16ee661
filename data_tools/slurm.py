"""Which share of the work is this process's, from what SLURM tells it."""

from collections.abc import Mapping


def choose_rank(
    rank: int | None, world_size: int | None, from_slurm: bool, environment: Mapping[str, str]
) -> tuple[int, int]:
    """What was given, else with ``from_slurm`` the place in SLURM's array and step, else 0 of 1.

    Args:
        rank: of --rank.
        world_size: of --world-size.
        from_slurm: of --slurm.
        environment: of the process.

    Raises:
        ValueError: only one of the two was given, both and --slurm, the array has gaps, or this is one of
            several of SLURM's tasks and nothing says whether they share the work.
    """
    if (rank is None) != (world_size is None):
        raise ValueError("--rank and --world-size: give both or none")
    if rank is not None and world_size is not None:
        if from_slurm:
            raise ValueError("--slurm tells what --rank and --world-size do: give the one or the others")
        return rank, world_size
    found = _place(environment)
    if from_slurm or found == (0, 1):
        return found
    # One of many data sets that an array makes, or a share of one: done for the other it would look done.
    raise ValueError(
        f"this is task {found[0]} of {found[1]} of a SLURM job: give --slurm for its share of the work, or "
        "--rank 0 --world-size 1 for all of it"
    )


def _place(environment: Mapping[str, str]) -> tuple[int, int]:
    """Which of how many tasks this is, among srun's in the members of an array."""

    def value(name: str, default: int) -> int:
        try:
            return int(environment.get(name) or default)
        except ValueError as error:
            raise ValueError(f"{name} is {environment[name]!r}, which is no number") from error

    tasks = value("SLURM_NTASKS", 1) if "SLURM_STEP_ID" in environment else 1  # in a batch script PROCID is 0
    task = value("SLURM_PROCID", 0) if tasks > 1 else 0
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return task, tasks
    count, step = value("SLURM_ARRAY_TASK_COUNT", 1), value("SLURM_ARRAY_TASK_STEP", 1)
    first, last = value("SLURM_ARRAY_TASK_MIN", 0), value("SLURM_ARRAY_TASK_MAX", 0)
    if count > 1 and (last - first) // max(1, step) + 1 != count:
        raise ValueError(
            f"the job array has {count} tasks between {first} and {last}, so which share is whose cannot be "
            "told: give --rank with this task's place from 0 on, and --world-size with the number of tasks"
        )
    member = (value("SLURM_ARRAY_TASK_ID", 0) - first) // max(1, step) if count > 1 else 0
    return member * tasks + task, count * tasks
