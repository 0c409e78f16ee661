"""The study's text: Python source of installed packages, as documents in an order that a hash decides, so
that the held-out part is like the rest.
"""

from pathlib import Path

from benchmarks.reproduce import source_texts, write_documents

PACKAGES = ("torch", "transformers", "sympy", "pandas", "scipy", "sklearn", "numpy", "matplotlib", "networkx")
"""Their versions are pinned: the same files for whoever sets up this project (the corpus's digest tells)."""


def write_corpora(trunk: Path, branch: Path) -> None:
    """Write three of five files of source to ``trunk``, the others to ``branch``: a branch reads what its
    trunk has not.
    """
    texts = source_texts(*PACKAGES)
    for path, parts in ((trunk, (0, 1, 2)), (branch, (3, 4))):
        write_documents(path, (text for number, text in enumerate(texts) if number % 5 in parts))
