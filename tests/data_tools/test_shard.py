"""One unit, one shard: the sample that is checked, the share of bad records, the lines of errors."""

import json
from collections import Counter

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from data_tools.encoders import load_encoder
from data_tools.files import lock
from data_tools.inputs import find_sources
from data_tools.records import Format
from data_tools.shard import (
    BadRecords,
    Settings,
    assemble,
    check_bad_share,
    is_whole,
    lines_before,
    write_shard,
)
from data_tools.units import plan_units


def settings(tokenizer_model, **changes):
    arguments = {
        "tokenizer_model": tokenizer_model, "form": Format(), "eod_id": 2, "bos_id": None, "fast": True,
        "pattern": None, "batch_bytes": 1 << 20, "stop_on_bad_record": True, "max_bad_share": 0.01,
    }  # fmt: skip
    return Settings(**arguments | changes)


def write(path, tokenizer_model, prefix, *, size=10**9, unit=0, encoder=None, **changes):
    units = plan_units(find_sources([path]), size, txt_is_split=False)
    encoder = encoder or load_encoder(tokenizer_model)
    return write_shard(units[unit], prefix, "plan", settings(tokenizer_model, **changes), encoder), units[
        unit
    ]


def test_card_says_when_a_shard_is_whole(hard_jsonl, tokenizer_model, tmp_path):
    prefix = tmp_path / "000000"
    card, unit = write(hard_jsonl, tokenizer_model, prefix)
    assert is_whole(prefix, unit, "plan")
    assert not is_whole(prefix, unit, "another plan")
    assert card["checked_against_reference"] >= 1
    assert not list(tmp_path.glob("*.tmp"))
    with open(prefix.with_suffix(".bin"), "ab") as file:
        file.write(b"x")
    assert not is_whole(prefix, unit, "plan")


def test_wrong_ids_stop_the_run_and_name_the_document(hard_jsonl, tokenizer_model, tmp_path):
    class Wrong:
        def __init__(self, real):
            self.real = real

        def encode_batch(self, texts, *, parallel):
            return self.real.encode_batch(
                [text.replace("best", "worst") for text in texts], parallel=parallel
            )

    encoder = load_encoder(tokenizer_model)
    encoder._fast = Wrong(encoder._fast)
    with pytest.raises(ValueError, match=r"hard\.jsonl: the fast path gives other ids .* 'It was the best"):
        write(hard_jsonl, tokenizer_model, tmp_path / "000000", encoder=encoder)
    assert not list(tmp_path.glob("*.json"))


def test_the_line_of_a_bad_record_in_a_later_range(tokenizer_model, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "good"}\n' * 40 + '{"text": 3}\n' + '{"text": "good"}\n' * 9)
    units = plan_units(find_sources([path]), 200, txt_is_split=False)
    assert [lines_before(unit.pieces[0]) for unit in units] == [0, 10, 20, 30, 40]
    with pytest.raises(BadRecords, match=r"in\.jsonl, line 41: not a string"):
        write(path, tokenizer_model, tmp_path / "000004", size=200, unit=4)


def test_rejects_are_listed(tokenizer_model, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "good"}\n{"text": 3}\n{}\n')
    card, _ = write(path, tokenizer_model, tmp_path / "000000", stop_on_bad_record=False)
    assert card["rejects"] == {"missing field": 1, "not a string": 1}
    lines = (tmp_path / "000000.rejects.jsonl").read_text().splitlines()
    assert [(json.loads(line)["line"], json.loads(line)["head"]) for line in lines] == [
        (2, '{"text": 3}'),
        (3, "{}"),
    ]


@pytest.fixture
def letters(tmp_path):
    """A tokenizer of two letters, without an id for anything else, not even for a space."""
    path = tmp_path / "letters.json"
    Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])).save(str(path))
    return path


NOTHING = ["ab", "\u5929\u5730", "a\u5929b", " \n", "b"]


def test_documents_without_tokens_are_bad_records(letters, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": text, "id": text}) + "\n" for text in NOTHING))
    with pytest.raises(BadRecords, match=r"in\.jsonl, line 2: no tokens: .*--tokenizer-model names another"):
        write(path, letters, tmp_path / "000000", eod_id=None)
    card, _ = write(
        path, letters, tmp_path / "000000", eod_id=None, stop_on_bad_record=False, max_bad_share=1.0,
        form=Format(id_field="id"),
    )  # fmt: skip
    assert (card["documents"], card["tokens"]) == (3, 3)
    assert card["rejects"] == {"empty": 1, "no tokens": 1}
    assert (card["documents_with_unknown"], card["unknown"]) == (1, 1)
    lines = map(json.loads, (tmp_path / "000000.rejects.jsonl").read_text().splitlines())
    assert [(line["line"], line["kind"], line["head"]) for line in lines] == [
        (2, "no tokens", "\u5929\u5730"),
        (4, "empty", " "),
    ]
    assert [json.loads(line) for line in (tmp_path / "000000.ids.jsonl").read_text().splitlines()] == [
        NOTHING[index] for index in (0, 2, 4)
    ]


def test_nearly_all_bad_stops_early(tokenizer_model, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"body": "good"}\n' * 20_000)
    with pytest.raises(BadRecords, match=r"20,000 missing field\), more than --max-bad-share 0\.01"):
        write(path, tokenizer_model, tmp_path / "000000", stop_on_bad_record=False)


def test_bad_share():
    check_bad_share(Counter({"empty": 1}), 100, 0.01, "list")
    check_bad_share(Counter(), 0, 0.0, "list")
    with pytest.raises(BadRecords, match=r"2 of 100 records are bad \(2 empty\).* listed in list"):
        check_bad_share(Counter({"empty": 2}), 100, 0.01, "list")


def test_another_process_at_the_same_unit(hard_jsonl, tokenizer_model, tmp_path):
    with lock(tmp_path / "000000.bin.tmp"), pytest.raises(ValueError, match="another run is writing it"):
        write(hard_jsonl, tokenizer_model, tmp_path / "000000")


def test_assemble():
    ids, lengths = assemble([np.array([5, 6], np.uint32), np.array([], np.uint32)], 1, 2, np.dtype(np.uint16))
    assert (ids.tolist(), lengths, ids.dtype) == ([1, 5, 6, 2, 1, 2], [4, 2], np.uint16)
    assert assemble([], 1, 2, np.dtype(np.uint16))[1] == []
