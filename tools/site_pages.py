"""Hooks of mkdocs: pages of the site that lie elsewhere in the repository, and the files that pages link to.

README.md is the site's first page, CONTRIBUTING.md and CHANGELOG.md are two more. Links are written for a
reader of the repository; here they lead to the site's pages, and what is no page comes along as a file.
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""In the repository, and on the site."""
FILES = "repository"
"""The site's folder of files that are linked to."""
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages, and every file that some page links to."""
    for source, page in PAGES.items():
        text = for_site((ROOT / source).read_text(encoding="utf-8"), Path(source), Path(page))
        files.append(File.generated(config, page, content=text))
    linked: set[str] = set()
    for source in [*PAGES, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]:
        if (ROOT / source).is_file():
            linked |= set(repository_files((ROOT / source).read_text(encoding="utf-8"), Path(source)))
    for path in sorted(linked):
        files.append(File.generated(config, f"{FILES}/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn the links of a page of docs/; those of the others are turned already."""
    if page.file.src_uri in PAGES.values():
        return markdown
    return for_site(markdown, Path("docs") / page.file.src_uri, Path(page.file.src_uri))


def repository_files(text: str, source: Path) -> list[str]:
    """Files that a page links to and that are no pages of the site."""
    targets = [_target(match[2], source) for match in LINK.finditer(text)]
    return [target for target in targets if target and not _page(target)]


def for_site(text: str, source: Path, page: Path) -> str:
    """The text of ``source``, a path in the repository, with links for ``page``, a path on the site."""

    def turned(match: re.Match[str]) -> str:
        target = _target(match[2], source)
        if target is None:
            return match[0]
        there = _page(target) or f"{FILES}/{target}"
        return match[1] + os.path.relpath(there, page.parent) + match[3]

    return LINK.sub(turned, text)


def _target(link: str, source: Path) -> str | None:
    """The path in the repository that a link leads to; None for one that leads out of it, and is to be left.

    Raises:
        ValueError: there is no such file.
    """
    if re.match(r"[a-z]+:", link):
        return None
    path = os.path.normpath(source.parent / link)
    if not (ROOT / path).is_file():
        raise ValueError(f"{source} links to {link}, and there is no such file")
    return path


def _page(target: str) -> str | None:
    """Of the site, if the file is one, or lies among them."""
    if target in PAGES:
        return PAGES[target]
    return target.removeprefix("docs/") if target.startswith("docs/") else None
