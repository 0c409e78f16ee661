"""Which share of the work is this process's, from what SLURM tells it."""

from collections.abc import Mapping


def default_rank(rank: int | None, world_size: int | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """What was given, else the place in SLURM's job array and among srun's tasks, else 0 of 1.

    Args:
        rank: of --rank.
        world_size: of --world-size.
        environment: of the process.

    Raises:
        ValueError: only one of the two was given, or the array has gaps.
    """
    if (rank is None) != (world_size is None):
        raise ValueError("--rank and --world-size: give both or none")
    if rank is not None and world_size is not None:
        return rank, world_size

    def value(name: str, default: int) -> int:
        return int(environment.get(name) or default)

    tasks = value("SLURM_NTASKS", 1) if "SLURM_STEP_ID" in environment else 1  # in a batch script PROCID is 0
    task = value("SLURM_PROCID", 0) if tasks > 1 else 0
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return task, tasks
    count, step = value("SLURM_ARRAY_TASK_COUNT", 1), value("SLURM_ARRAY_TASK_STEP", 1)
    first, last = value("SLURM_ARRAY_TASK_MIN", 0), value("SLURM_ARRAY_TASK_MAX", 0)
    if (last - first) // step + 1 != count:
        raise ValueError(
            f"the job array has {count} tasks between {first} and {last}, so which share is "
            "whose cannot be told: "
            "give --rank $SLURM_ARRAY_TASK_ID and the --world-size of the whole array"
        )
    member = (value("SLURM_ARRAY_TASK_ID", 0) - first) // step
    return member * tasks + task, count * tasks
