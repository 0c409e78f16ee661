"""Data sets before Megatron builds them. Damaged files are in test_survival.py."""


def limits_of_open_files(soft: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Before, and after a process that begins with ``soft``."""
    import resource

    from phd.model.dataset import allow_open_files

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        allow_open_files()
        return before, resource.getrlimit(resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_as_many_open_files_as_the_machine_allows(world):
    """Three for each data set of a blend: 1024, what many machines start with, were too few for 350."""
    ((before, after),) = world.run(limits_of_open_files, 512)
    assert after == (before[1], before[1]) and after[0] > 512


def told_of_too_many() -> str | None:
    import errno

    from phd.model.survival import explain

    return explain(OSError(errno.EMFILE, "Too many open files"))


def test_too_many_for_the_machine_too(world):
    assert world.run(told_of_too_many) == [
        "too many open files: raise `ulimit -Hn`, or make fewer data sets of them (phd data merge)"
    ]
