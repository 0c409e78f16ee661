"""The study's text: Python source of installed packages, as documents in an order that a hash decides, so that
the held-out part is like the rest.
"""

import hashlib
import json
import os
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("torch", "transformers", "sympy", "pandas", "scipy", "sklearn", "numpy", "matplotlib", "networkx")
"""Their versions are pinned: the same files for whoever sets up this project (the corpus's digest tells)."""

MINIMUM_CHARACTERS = 500


def write_corpus(path: Path) -> None:
    """Write one file of source a line to ``path`` (jsonl, whole or not at all), each text once."""
    texts = {}
    for name in PACKAGES:
        spec = find_spec(name)
        assert spec is not None and spec.origin is not None, name
        for file in Path(spec.origin).parent.rglob("*.py"):
            text = file.read_text(encoding="utf-8", errors="replace")
            if len(text) >= MINIMUM_CHARACTERS:
                texts[hashlib.sha256(text.encode()).hexdigest()] = text
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as lines:
        for _, text in sorted(texts.items()):
            lines.write(json.dumps({"text": text}) + "\n")
        lines.flush()
        os.fsync(lines.fileno())
    temporary.replace(path)
