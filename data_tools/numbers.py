"""Numbers of flags: what is none, or none that makes sense, is refused by the flag's name."""

import math


def check_above(flag: str, value: float, least: float = 0.0, *, may_be_infinite: bool = False) -> None:
    """Raise ValueError unless ``value`` is above ``least``; nan never is."""
    if not value > least or (math.isinf(value) and not may_be_infinite):
        raise ValueError(f"{flag} must be a number above {least:g}, got {value}")


def check_at_least(flag: str, value: int, least: int = 1, most: int | None = None) -> None:
    """Raise ValueError unless ``value`` is from ``least`` to ``most``."""
    if value < least:
        raise ValueError(f"{flag} must be at least {least}, got {value}")
    if most is not None and value > most:
        raise ValueError(f"{flag} must be at most {most:,}, got {value:,}")


def train_share(split: str) -> float:
    """Of Megatron's ``--split`` the share of the documents that is trained on.

    Raises:
        ValueError: it is not up to three numbers from 0 on, like 95,5,0, or nothing is trained on.
    """
    try:
        shares = [float(share) for share in split.split(",")]
    except ValueError as error:
        raise ValueError(f"--split {split}: expected numbers like 95,5,0") from error
    # Megatron looks for digits and dots alone: a sign, an exponent or nan would mean another number to it.
    if len(shares) > 3 or any(set(share.strip()) - set("0123456789.") for share in split.split(",")):
        raise ValueError(f"--split {split}: expected up to three numbers from 0 on, like 95,5,0 or 0.9,0.1,0")
    if not shares[0] or math.isinf(sum(shares)):
        raise ValueError(f"--split {split}: the first number is the share that is trained on, and it is 0")
    return shares[0] / sum(shares)
