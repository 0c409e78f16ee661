"""The tables of README and docs/results.md are what the JSON files give; and what a page's slots may hold."""

import pytest

from tools.tables import PAGES, TABLES, filled, table


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_fresh(page):
    """`make results` makes them so."""
    text = page.read_text(encoding="utf-8")
    assert filled(text) == text


def test_every_table_stands_on_a_page():
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert {name: pages.count(f"<!-- table: {name} -->") for name in TABLES} == dict.fromkeys(TABLES, 1)


def test_slots(monkeypatch):
    monkeypatch.setitem(TABLES, "one", lambda: (["", "b"], [["x", "1"], ["y", ""]]))
    before = "text\n<!-- table: one -->\n| old |\n<!-- /table -->\nmore <!-- table: none\n"
    made = "| | b |\n|---|---|\n| x | 1 |\n| y | |\n"
    assert filled(before) == before.replace("| old |\n", made)
    assert filled(filled(before)) == filled(before)
    with pytest.raises(KeyError):
        filled("<!-- table: unknown -->\n<!-- /table -->")
    assert table(["a"], []) == "| a |\n|---|\n"
