"""Weights of several data sets, as the file that Megatron's --data-args-path takes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from data_tools.cards import same_tokenizer
from data_tools.files import write_bytes
from data_tools.indexed import Indexed, open_indexed
from data_tools.numbers import check_above, check_at_least
from data_tools.places import data_set_files, refuse_over_inputs, refuse_twice
from data_tools.tables import print_table
from data_tools.weights_file import shares_in

LARGEST = 1e100
"""Of the numbers of ``--weights`` and ``--epochs``: times the tokens of a data set it is still a number."""
MOST_TOKENS = 10**18


@dataclass(frozen=True)
class Part:
    """A data set of a blend."""

    prefix: Path
    tokens: int  # that an epoch of the training reads


@dataclass(frozen=True)
class Length:
    """How long the training is, and how much of the data it may read how often."""

    train_tokens: int | None = None
    max_epochs: float = 4.0
    train_share: float = 1.0  # of the documents, from the first on: what --split leaves for training

    def __post_init__(self) -> None:
        if self.train_tokens is not None:
            check_at_least("--train-tokens", self.train_tokens, most=MOST_TOKENS)
        check_above("--max-epochs", self.max_epochs, may_be_infinite=True)


def blend(
    data_sets: Sequence[str],
    output: Path,
    *,
    temperature: float | None = None,
    epochs: bool = False,
    weights: bool = False,
    weights_file: Path | None = None,
    train_tokens: int | None = None,
    max_epochs: float = 4.0,
    train_share: float = 1.0,
) -> list[float]:
    """Write "weight prefix weight prefix ..." to ``output`` and print how often each is gone through.

    Args:
        data_sets: prefixes; with ``epochs`` or ``weights`` PREFIX=NUMBER.
        output: the file to write.
        temperature: weights are tokens ** (1 / temperature): 1 (the default) by size, more is nearer to even.
        epochs: the numbers say how often each data set is gone through.
        weights: the numbers are shares of the tokens trained on.
        weights_file: shares of the tokens trained on, by the names of the data sets; see ``shares_in``.
        train_tokens: length of the training; with ``epochs`` by default what the numbers come to.
        max_epochs: no data set may be gone through more often; not judged without ``train_tokens``.
        train_share: of the documents, how much ``--split`` leaves for training.

    Returns:
        the weights, which add up to 1.

    Raises:
        FileNotFoundError, ValueError: see ``open_indexed``.
        ValueError: a number is missing or bad, a data set comes twice or is gone through too often, two were
            made with different tokenizers, or the output's place is another file's.
    """
    length = Length(train_tokens, max_epochs, train_share)
    if temperature is not None:
        check_above("--temperature", temperature)
    prefixes, numbers = _split_numbers(data_sets, epochs or weights)
    refuse_twice(prefixes)
    check_place(output, prefixes, "--output")
    parts = [Part(prefix, tokens_read(open_indexed(prefix), train_share)) for prefix in prefixes]
    same_tokenizer(prefixes)
    for part in parts:
        refuse_unread(part, train_share)
    if epochs:
        wanted = [number * part.tokens for number, part in zip(numbers, parts, strict=True)]
        if train_tokens is None:
            length = Length(min(MOST_TOKENS, max(1, int(sum(wanted)))), max_epochs, train_share)
    elif weights:
        wanted = numbers
    elif weights_file is not None:
        wanted = shares_in(weights_file, prefixes)
    else:
        most = max(part.tokens for part in parts)
        wanted = [math.exp(math.log(part.tokens / most) / (temperature or 1.0)) for part in parts]
    shares = share_out(parts, wanted, output, length)
    write_blend(output, parts, shares)
    return shares


def tokens_read(indexed: Indexed, train_share: float) -> int:
    """Tokens of an epoch as Megatron counts it: of the first ``train_share`` of the sequences.

    A share of the documents is not that share of the tokens: their lengths are in the index.
    """
    last = round(train_share * float(indexed.sequences))
    return int(indexed.lengths[:last].sum(dtype=np.int64))


def share_out(parts: Sequence[Part], wanted: Sequence[float], title: Path, length: Length) -> list[float]:
    """Print what the shares mean for a training, and refuse what overruns a data set.

    Args:
        parts: the data sets.
        wanted: what each counts, in any unit.
        title: of the table.
        length: of the training.

    Returns:
        the shares of the tokens trained on, which add up to 1.

    Raises:
        ValueError: a data set gets no share, or is gone through too often.
    """
    largest = max(wanted)
    total = math.fsum(value / largest for value in wanted)
    shares = [value / largest / total for value in wanted]
    table = Table("data set", "tokens", "weight", "epochs", title=f"blend: {title}")
    worst, worst_epochs = parts[0], 0.0
    for part, share in zip(parts, shares, strict=True):
        if not share > 0:
            raise ValueError(
                f"{part.prefix}: its weight is 0 beside the others': leave it out, or give it more (a higher "
                "--temperature, or a larger number)"
            )
        gone_through = share * (length.train_tokens or 0) / part.tokens
        if gone_through > worst_epochs:
            worst, worst_epochs = part, gone_through
        told = f"{gone_through:,.2f}" if length.train_tokens else "?"
        table.add_row(str(part.prefix), f"{part.tokens:,}", f"{share:.6g}", told)
    print_table(table)
    if length.train_share < 1:
        print(
            f"tokens are those of the first {length.train_share:.1%} of the documents that --split leaves "
            "for training"
        )
    # A little over by rounding is no overrun.
    if worst_epochs > length.max_epochs * (1 + 1e-9):
        raise ValueError(
            f"{worst.prefix}: {length.train_tokens:,} tokens of training would go through it "
            f"{worst_epochs:,.2f} times, more than --max-epochs {length.max_epochs:g}, as training reads "
            f"{worst.tokens:,} tokens of it: give it less weight, train on fewer tokens, or allow more "
            "--max-epochs"
        )
    if length.train_tokens is None:
        once = min(part.tokens / share for part, share in zip(parts, shares, strict=True))
        print(
            f"up to {once * length.max_epochs:,.0f} tokens of training stay within --max-epochs "
            f"{length.max_epochs:g} (--train-tokens checks)"
        )
    return shares


def write_blend(output: Path, parts: Sequence[Part], shares: Sequence[float]) -> None:
    """The file that --data-args-path takes; weights in all their digits."""
    lines = [f"{share!r} {part.prefix}\n" for share, part in zip(shares, parts, strict=True)]
    output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(output, "".join(lines).encode())


def check_place(output: Path, prefixes: Sequence[Path], flag: str) -> None:
    """Raise ValueError if the blend would lie over one of the data sets, or over what is no blend."""
    refuse_over_inputs([output], [file for prefix in prefixes for file in data_set_files(prefix)], flag)
    if output.is_dir():
        raise ValueError(f"{flag} {output}: a folder is there: name a file")
    if output.exists() and not _is_blend(output):
        raise ValueError(f"{output} is there already and is no blend: choose another {flag}, or move it away")


def _is_blend(file: Path) -> bool:
    """Whether it holds what ``write_blend`` writes: lines of a number and a path."""
    try:
        with open(file, encoding="utf-8") as lines:
            return all(float(line.split()[0]) > 0 and len(line.split()) == 2 for line in lines)
    except (ValueError, IndexError):
        return False


def check_path(path: Path | str) -> None:
    """Raise ValueError if --data-args-path cannot hold a path."""
    # Megatron takes paths apart at white space.
    if any(character.isspace() for character in str(path)):
        raise ValueError(f"{path}: --data-args-path cannot hold a path with a space in it: choose another")
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{path}: --data-args-path cannot hold a path that is not UTF-8") from error


def refuse_unread(part: Part, train_share: float) -> None:
    if not part.tokens:
        where = f"in the first {train_share:.1%} of its documents, " if train_share < 1 else ""
        raise ValueError(f"{part.prefix} holds no tokens {where}so training reads none of it: leave it out")


def _split_numbers(data_sets: Sequence[str], numbered: bool) -> tuple[list[Path], list[float]]:
    prefixes, numbers = [], []
    for entry in data_sets:
        name, equals, number = entry.rpartition("=")
        if not numbered:
            name = entry
        elif not equals:
            raise ValueError(f"{entry}: --epochs and --weights need PREFIX=NUMBER")
        else:
            try:
                numbers.append(float(number))
            except ValueError as error:
                raise ValueError(f"{entry}: {number!r} is not a number") from error
            if not 0 < numbers[-1] < LARGEST:
                raise ValueError(
                    f"{entry}: the number must be above 0 and below {LARGEST:g}; leave out what is not wanted"
                )
        prefix = Path(name).resolve()
        check_path(prefix)
        prefixes.append(prefix)
    return prefixes, numbers
