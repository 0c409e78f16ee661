"""Links of the repository's pages, turned for the site; that it holds together, `make site` tells."""

from pathlib import Path

import pytest

from tools.site_pages import for_site, repository_files


@pytest.mark.parametrize(
    ("source", "page", "text", "turned"),
    [
        ("README.md", "index.md", "[a](docs/data.md)", "[a](data.md)"),
        (
            "README.md",
            "index.md",
            "![a](docs/copies.svg) [b](LICENSE)",
            "![a](copies.svg) [b](repository/LICENSE)",
        ),
        ("docs/data.md", "data.md", "[a](../CONTRIBUTING.md#rules)", "[a](contributing.md#rules)"),
        ("docs/data.md", "data.md", "[a](tokenizing.md), [b](#here)", "[a](tokenizing.md), [b](#here)"),
        ("docs/api/rules.md", "api/rules.md", "[a](../../README.md)", "[a](../index.md)"),
        (
            "docs/results.md",
            "results.md",
            "[a](../benchmarks/demo.json) and [b](https://arxiv.org/abs/2504.14992)",
            "[a](repository/benchmarks/demo.json) and [b](https://arxiv.org/abs/2504.14992)",
        ),
    ],
)
def test_links(source, page, text, turned):
    assert for_site(text, Path(source), Path(page)) == turned
    files = [f"repository/{file}" for file in repository_files(text, Path(source))]
    assert all(file in turned for file in files) and len(files) == turned.count("repository/")


def test_a_link_to_nothing_is_refused():
    with pytest.raises(ValueError, match=r"docs/data.md links to ../no.md, and there is no such file"):
        for_site("[a](../no.md)", Path("docs/data.md"), Path("data.md"))
