"""`phd rope-base`: the base of the rotary angles for a longer context, as a number for --rotary-base."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phd rope-base`."""
    parser.add_argument(
        "--base", type=float, required=True, help="of the model as it is: --rotary-base, rope_theta"
    )
    parser.add_argument(
        "--from", dest="trained", type=int, required=True, metavar="TOKENS", help="context of the model"
    )
    parser.add_argument("--to", type=int, required=True, metavar="TOKENS", help="context to extend it to")
    parser.add_argument(
        "--head-dim", type=int, default=128, help="rotary dimensions of a head (default 128, Llama's)"
    )


def run(args: argparse.Namespace) -> int:
    """Print the base, a whole number, as --rotary-base is."""
    print(round(dynamic_ntk_base(args.base, args.trained, args.to, args.head_dim)))
    return 0


def dynamic_ntk_base(base: float, trained: int, target: int, head_dim: int) -> float:
    """theta * (f * target / trained - (f - 1)) ** (d / (d - 2)) with the factor f = target / trained: what
    transformers calls dynamic NTK scaling gives a sequence of ``target`` tokens. LongRecipe's base for its
    whole training (arXiv 2409.00509).

    Args:
        base: theta of the trained model.
        trained, target: contexts in tokens.
        head_dim: d, the rotary dimensions of a head.

    Raises:
        ValueError: names the flag.
    """
    if not 1 < base < float("inf"):
        raise ValueError(f"--base must be a number above 1, got {base}")
    if trained < 1:
        raise ValueError(f"--from must be at least 1, got {trained}")
    if target < trained:
        raise ValueError(
            f"--to {target} is less than --from {trained}: a shorter context needs no other base"
        )
    if head_dim < 4 or head_dim % 2:
        raise ValueError(f"--head-dim must be even and at least 4, got {head_dim}")
    factor = target / trained
    return base * (factor * factor - (factor - 1)) ** (head_dim / (head_dim - 2))
