"""Errors whose cause and remedy are known."""


def told_of_too_many() -> str | None:
    import errno

    from phd.training.errors import explain

    return explain(OSError(errno.EMFILE, "Too many open files"))


def test_too_many_open_files_for_the_machine(world):
    assert world.run(told_of_too_many) == [
        "too many open files: raise `ulimit -Hn`, or make fewer data sets of them (phd data merge)"
    ]
