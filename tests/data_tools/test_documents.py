"""What a document is, and what its id may be."""

import json

import pytest

from data_tools.documents import MISSING, REJECT_KINDS, Batch, Format, add, find_field, parse_line, parse_row


def read(record, form, parse=parse_line):
    batch = Batch()
    add(batch, 7, record, form, parse)
    return batch


def test_ids_of_any_kind():
    batch = Batch()
    lines = (b'{"text": "a", "id": "\\u00e9\\n"}', b'{"text": "b", "id": 3}', b'{"text": "c"}')
    for number, line in enumerate(lines, start=1):
        add(batch, number, line, Format(id_field="id"), parse_line)
    assert [json.loads(identifier) for identifier in batch.ids] == ["\u00e9\n", 3]
    assert not any("\n" in identifier for identifier in batch.ids)
    assert batch.rejects[0].detail == "no field 'id' (--id-field names another)"


@pytest.mark.parametrize(
    ("identifier", "kind"),
    [
        (rb'"\ud800"', "invalid UTF-8"),
        (rb'{"a": ["\udfff"]}', "invalid UTF-8"),
        (rb'{"\ud800": 1}', "invalid UTF-8"),
        (b"NaN", "unreadable"),
        (b"[1, -Infinity]", "unreadable"),
    ],
)
def test_an_id_is_held_to_the_rules_of_the_text(identifier, kind):
    """One that cannot be written makes a bad record, and no line of ids is written for it."""
    batch = read(b'{"text": "a", "id": ' + identifier + b"}", Format(id_field="id"))
    assert (batch.texts, batch.ids) == ([], [])
    (reject,) = batch.rejects
    assert (reject.line, reject.kind) == (7, kind)
    assert "'id'" in reject.detail and kind in REJECT_KINDS
    json.dumps(reject.head).encode()


def test_an_id_that_python_cannot_write():
    for identifier in ({1, 2}, b"\xff", object()):
        batch = read({"text": "a", "id": [identifier]}, Format(id_field="id"), parse_row)
        assert len(batch.ids) == len(batch.texts) == 1 - len(batch.rejects)
    assert (
        read({"text": "a", "id": [b"\xff"]}, Format(id_field="id"), parse_row).rejects[0].kind
        == "invalid UTF-8"
    )


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"a": {"b": "nested"}}, "nested"),
        ({"a.b": "literal", "a": {"b": "nested"}}, "literal"),
        ({"a": {}, "a.b": "literal"}, "literal"),
        ({"a": None}, MISSING),
        ({"a": {"c": 1}}, MISSING),
        ({"a": [{"b": 1}]}, MISSING),
        ({}, MISSING),
    ],
)
def test_nested_fields(record, expected):
    assert find_field(record, "a.b") == expected


def test_keys_with_dots_within_objects():
    assert find_field({"a": {"b.c": {"d": 1}}}, "a.b.c.d") == 1
    assert find_field({"a.b": {"c": 1}, "a": {"x": 2}}, "a.b.c") == 1
    assert find_field({"": {"": 1}}, ".") == 1


def test_nested_text_and_id():
    line = b'{"meta": {"text": "a", "id": 3}}'
    batch = read(line, Format("meta.text", "meta.id"))
    assert (batch.texts, batch.ids) == (["a"], ["3"])
    assert "no field 'meta.body' (--text-field" in read(line, Format("meta.body")).rejects[0].detail
