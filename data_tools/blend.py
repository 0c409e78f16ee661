"""Weights of several data sets, as the file that Megatron's --data-args-path takes."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from data_tools.cards import same_tokenizer
from data_tools.files import write_bytes
from data_tools.indexed import open_indexed
from data_tools.tables import print_table


def blend(
    data_sets: Sequence[str],
    output: Path,
    *,
    temperature: float | None = None,
    epochs: bool = False,
    weights: bool = False,
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
        train_tokens: length of the training; with ``epochs`` by default what the numbers come to.
        max_epochs: no data set may be gone through more often; not judged without ``train_tokens``.
        train_share: of the documents, how much ``--split`` leaves for training.

    Returns:
        the weights, which add up to 1.

    Raises:
        FileNotFoundError, ValueError: see ``open_indexed``.
        ValueError: a number is missing or bad, a data set comes twice or is gone through too often, or two
            were made with different tokenizers.
    """
    numbered = epochs or weights
    prefixes, numbers = _split_numbers(data_sets, numbered)
    tokens = [open_indexed(prefix).tokens * train_share for prefix in prefixes]
    if empty := [prefix for prefix, count in zip(prefixes, tokens, strict=True) if count < 1]:
        raise ValueError(f"{empty[0]} holds no tokens: leave it out")
    same_tokenizer(prefixes)
    if epochs:
        parts = [number * count for number, count in zip(numbers, tokens, strict=True)]
        train_tokens = train_tokens or int(sum(parts))
    elif weights:
        parts = numbers
    else:
        if temperature is not None and temperature <= 0:
            raise ValueError(f"--temperature must be above 0, got {temperature}")
        parts = [count ** (1 / (temperature or 1.0)) for count in tokens]
    shares = [part / sum(parts) for part in parts]

    table = Table("data set", "tokens", "weight", "epochs", title=f"blend: {output}")
    worst, worst_epochs = prefixes[0], 0.0
    for prefix, count, share in zip(prefixes, tokens, shares, strict=True):
        gone_through = share * train_tokens / count if train_tokens else 0.0
        if gone_through > worst_epochs:
            worst, worst_epochs = prefix, gone_through
        table.add_row(
            str(prefix), f"{count:,.0f}", f"{share:.6f}", f"{gone_through:.2f}" if train_tokens else "?"
        )
    print_table(table)
    if train_share < 1:
        print(f"tokens are those of the {train_share:.1%} of the documents that --split leaves for training")
    # A little over by rounding is no overrun.
    if worst_epochs > max_epochs * (1 + 1e-9):
        raise ValueError(
            f"{worst}: {train_tokens:,} tokens of training would go through it "
            f"{worst_epochs:.2f} times, more than "
            f"--max-epochs {max_epochs:g}: give it less weight, or train on fewer tokens"
        )
    if train_tokens is None:
        longest = min(max_epochs * count / share for count, share in zip(tokens, shares, strict=True))
        print(
            f"up to {longest:,.0f} tokens of training stay within --max-epochs {max_epochs:g} "
            "(--train-tokens checks)"
        )
    lines = [f"{share:.10f} {prefix}\n" for share, prefix in zip(shares, prefixes, strict=True)]
    output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(output, "".join(lines).encode())
    return shares


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
            if not 0 < numbers[-1] < float("inf"):
                raise ValueError(f"{entry}: the number must be above 0; leave out what is not wanted")
        # Megatron takes paths apart at white space.
        if any(character.isspace() for character in name):
            raise ValueError(f"{entry}: --data-args-path cannot hold a path with a space in it")
        prefix = Path(name).resolve()
        if prefix in prefixes:
            raise ValueError(f"{entry}: named twice; give it one number")
        prefixes.append(prefix)
    return prefixes, numbers
