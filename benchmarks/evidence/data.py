"""The study's text: Python source of installed packages, as documents in an order that a hash decides, so
that the held-out part is like the rest.
"""

import hashlib
import json
import os
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("torch", "transformers", "sympy", "pandas", "scipy", "sklearn", "numpy", "matplotlib", "networkx")
"""Their versions are pinned: the same files for whoever sets up this project (the corpus's digest tells)."""

MINIMUM_CHARACTERS = 500


def write_corpora(trunk: Path, branch: Path) -> None:
    """Write one file of source a line (jsonl, whole or not at all), each text once: three of five to
    ``trunk``, the others to ``branch``, so that a branch reads what its trunk has not.
    """
    texts = {}
    for name in PACKAGES:
        spec = find_spec(name)
        assert spec is not None and spec.origin is not None, name
        for file in Path(spec.origin).parent.rglob("*.py"):
            text = file.read_text(encoding="utf-8", errors="replace")
            if len(text) >= MINIMUM_CHARACTERS:
                texts[hashlib.sha256(text.encode()).hexdigest()] = text
    ordered = [text for _, text in sorted(texts.items())]
    for path, parts in ((trunk, (0, 1, 2)), (branch, (3, 4))):
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as lines:
            for number, text in enumerate(ordered):
                if number % 5 in parts:
                    lines.write(json.dumps({"text": text}) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
        temporary.replace(path)
