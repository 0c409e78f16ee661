"""Shares of data sets in a file, by their names: a recipe, whatever folder the data lies in.

# a comment
0.30 code-64k
0.70 books-64k
"""

import math
from collections.abc import Sequence
from pathlib import Path

TOLERANCE = 1e-6
"""By how much the shares may miss 1: sixths in seven digits."""


def shares_in(file: Path, prefixes: Sequence[Path]) -> list[float]:
    """The share of each data set in ``file``, in the order of ``prefixes``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no share and name, a name comes twice, the shares do not add up to 1, or the
            file and ``prefixes`` do not name the same data sets.
    """
    shares = _read(file)
    given: dict[str, Path] = {}
    for prefix in prefixes:
        if (other := given.setdefault(prefix.name, prefix)) != prefix:
            raise ValueError(
                f"--weights-file {file}: {other} and {prefix} have one name, and the file goes by names: "
                "rename one"
            )
    if missing := [name for name in shares if name not in given]:
        raise ValueError(f"--weights-file {file}: no PREFIX is called {', '.join(missing)}: name those too")
    if unknown := [name for name in given if name not in shares]:
        raise ValueError(
            f"--weights-file {file} has no share for {', '.join(unknown)}: leave it out, or add a line"
        )
    return [shares[prefix.name] for prefix in prefixes]


def _read(file: Path) -> dict[str, float]:
    if not file.is_file():
        raise FileNotFoundError(f"--weights-file {file}: there is no such file")
    shares: dict[str, float] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"--weights-file {file}, line {number}"
        try:
            share, name = float(words[0]), words[1]
        except (ValueError, IndexError) as error:
            raise ValueError(f"{where}: expected a share and the name of a data set: 0.3 books") from error
        if len(words) > 2 or not 0 < share <= 1:
            raise ValueError(f"{where}: expected a share above 0 and up to 1, and one name, got {line!r}")
        if name in shares:
            raise ValueError(f"{where}: {name} has a share already")
        shares[name] = share
    if abs((total := math.fsum(shares.values())) - 1) > TOLERANCE:
        raise ValueError(f"--weights-file {file}: the shares add up to {total:.6g}, not to 1: mend them")
    return shares
