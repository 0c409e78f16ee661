"""Tables of results, on stdout."""

from rich.console import Console
from rich.table import Table

WIDEST = 10_000


def print_table(table: Table) -> None:
    """Print a table as wide as it is: to fit a terminal, rich would cut paths and words off."""
    Console(soft_wrap=True, width=WIDEST).print(table)
