"""Cards: what data sets have in common, whose files may be replaced, and that a card comes last."""

import json

import pytest

from data_tools import cards as module
from data_tools.cards import (
    put_in_place,
    read_card,
    refuse_without_card,
    same_control_tokens,
    same_tokenizer,
)


def write(prefix, **told):
    card = {"documents": 1, "tokens": 1, "file_bytes": {".bin": 2}} | told
    prefix.with_suffix(".json").write_text(json.dumps(card))
    return prefix


def test_what_cards_agree_on(tmp_path):
    one = write(
        tmp_path / "one", vocab_size=600, eod_id=2, made_from={"tokenizer_sha256": "12", "bos_id": None}
    )
    two = write(tmp_path / "two", tokenizer_sha256="12", eod_id=2)
    bare = tmp_path / "bare"
    assert same_tokenizer([bare, one, two]) == {"vocab_size": 600, "tokenizer_sha256": "12"}
    assert same_tokenizer([bare]) == {}
    assert same_control_tokens([one, two]) == {"eod_id": 2}
    assert same_control_tokens([one, two, bare]) == {}
    other = write(tmp_path / "other", tokenizer_sha256="34", eod_id=None)
    with pytest.raises(
        ValueError, match=r"one and .*other were made with different tokenizers \(.* 12 and 34\)"
    ):
        same_tokenizer([one, two, other])
    with pytest.raises(ValueError, match=r"one and .*other begin or end .* \(eod_id 2 and None\)"):
        same_control_tokens([one, two, other])


@pytest.mark.parametrize("end", [".bin", ".idx"])
def test_files_without_a_card_are_kept(end, tmp_path):
    refuse_without_card(tmp_path / "a", "--output")
    (tmp_path / f"a{end}").write_bytes(b"precious")
    with pytest.raises(ValueError, match=rf"a\{end} is there already and no card .* choose another --output"):
        refuse_without_card(tmp_path / "a", "--output")
    write(tmp_path / "a")
    refuse_without_card(tmp_path / "a", "--output")


@pytest.mark.parametrize("renamed", [0, 1, 2, 3])
def test_stopped_between_any_two_names(renamed, tmp_path, monkeypatch):
    """What lies there is no data set yet, and the next run may replace it."""
    left = renamed

    def rename(path, target):
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        path.replace(target)

    ends = [".bin", ".idx", ".ids.jsonl"]
    for end in ends:
        (tmp_path / f"a{end}.tmp").write_bytes(b"xy")
    with monkeypatch.context() as patch:
        patch.setattr(module, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            put_in_place(tmp_path / "a", ends, {"documents": 1, "tokens": 1})
    assert read_card(tmp_path / "a") is None
    assert (tmp_path / "a.idx").exists() == (renamed == 3)
    refuse_without_card(tmp_path / "a", "--output-prefix")
    for end in ends:
        (tmp_path / f"a{end}.tmp").write_bytes(b"xyz")
    card = put_in_place(tmp_path / "a", ends, {"documents": 1, "tokens": 1})
    assert card == read_card(tmp_path / "a")
    assert card["file_bytes"] == dict.fromkeys(ends, 3)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.bin", "a.ids.jsonl", "a.idx", "a.json"]


def test_a_card_of_something_else(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([1, 2]))
    with pytest.raises(ValueError, match=r"a\.json is no card"):
        read_card(tmp_path / "a")
