"""The folder of a run's work: what locks it, and what is deleted of it."""

import json

import pytest

from data_tools.files import lock
from data_tools.plan import delete_work
from data_tools.records import Format
from data_tools.tokenize import tokenize


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "a", "title": "b", "id": "c"}\n' * 100)
    return tmp_path / "in.jsonl"


@pytest.mark.parametrize(
    "wrong",
    [
        {"form": Format("txet")},
        {"form": Format("txet"), "stop_on_bad_record": False},
        {"form": Format(id_field="di")},
        {"form": Format("txet"), "unit_size": 1000},
    ],
    ids=["text", "skip", "id", "units"],
)
def test_a_wrong_first_command_does_not_lock_the_place(
    wrong, corpus, tokenizer_model, tmp_path, in_process, capsys
):
    with pytest.raises(ValueError, match=r"missing field|records are bad"):
        tokenize([corpus], tmp_path / "out", tokenizer_model=tokenizer_model, **wrong)
    card = tokenize([corpus], tmp_path / "out", tokenizer_model=tokenizer_model)
    assert card["documents"] == 100
    assert "no document was written: made anew" in capsys.readouterr().out
    assert not (tmp_path / "out.units").exists()


def test_other_inputs_after_a_typo_too(corpus, tokenizer_model, tmp_path, in_process):
    (tmp_path / "bad.jsonl").write_text("[\n")
    with pytest.raises(ValueError, match="missing field|broken JSON"):
        tokenize([tmp_path / "bad.jsonl"], tmp_path / "out", tokenizer_model=tokenizer_model)
    assert tokenize([corpus], tmp_path / "out", tokenizer_model=tokenizer_model)["documents"] == 100


def test_finished_and_running_work_is_kept(corpus, tokenizer_model, tmp_path, in_process):
    arguments = {"tokenizer_model": tokenizer_model, "world_size": 2}
    tokenize([corpus], tmp_path / "out", **arguments)
    with pytest.raises(ValueError, match="text_field was text, is title.* delete .*out.units to begin anew"):
        tokenize([corpus], tmp_path / "out", form=Format("title"), **arguments)
    (card,) = (tmp_path / "out.units").glob("*[!n].json")
    card.unlink()
    with lock(card.with_suffix(".bin.tmp")), pytest.raises(ValueError, match="text_field was text, is title"):
        tokenize([corpus], tmp_path / "out", form=Format("title"), **arguments)
    tokenize([corpus], tmp_path / "out", form=Format("title"), **arguments)


def test_a_plan_that_is_none(corpus, tokenizer_model, tmp_path):
    (tmp_path / "out.units").mkdir()
    for content in ("", "[]", '{"made_from": {}}'):
        (tmp_path / "out.units" / "plan.json").write_text(content)
        with pytest.raises(ValueError, match=r"plan\.json is no plan .* move it away"):
            tokenize([corpus], tmp_path / "out", tokenizer_model=tokenizer_model)


def test_what_is_not_ours_is_not_deleted(corpus, tokenizer_model, tmp_path, in_process, capsys):
    folder = tmp_path / "out.units"
    (folder / "mine").mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    tokenize([corpus], tmp_path / "out", tokenizer_model=tokenizer_model)
    assert sorted(file.name for file in folder.iterdir()) == ["mine", "notes.txt"]
    assert "is not deleted: 2 files in it are others" in capsys.readouterr().out
    delete_work(tmp_path / "none.units")


def test_work_on_another_disk(corpus, tokenizer_model, tmp_path, in_process):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "out.units").symlink_to(tmp_path / "scratch")
    assert tokenize([corpus], tmp_path / "out", tokenizer_model=tokenizer_model)["documents"] == 100
    assert not list((tmp_path / "scratch").iterdir())


def test_the_same_files_through_links(corpus, tokenizer_model, tmp_path, in_process, monkeypatch):
    """A link is no other file: neither to what is finished nor to what is under way."""
    (tmp_path / "linked.jsonl").symlink_to(corpus)
    (tmp_path / "hard.jsonl").hardlink_to(corpus)
    (tmp_path / "folder").symlink_to(tmp_path)
    names = [tmp_path / "linked.jsonl", tmp_path / "hard.jsonl", tmp_path / "folder" / "in.jsonl"]
    tokenize([corpus], tmp_path / "units", tokenizer_model=tokenizer_model, world_size=2)
    plan = json.loads((tmp_path / "units.units" / "plan.json").read_text())
    first = tokenize([corpus], tmp_path / "out", tokenizer_model=tokenizer_model)
    for name in names:
        assert tokenize([name], tmp_path / "out", tokenizer_model=tokenizer_model) == first
        tokenize([name], tmp_path / "units", tokenizer_model=tokenizer_model, world_size=2)
        assert json.loads((tmp_path / "units.units" / "plan.json").read_text()) == plan
    (tmp_path / "copy.jsonl").write_bytes(corpus.read_bytes())
    with pytest.raises(ValueError, match="inputs was"):
        tokenize([tmp_path / "copy.jsonl"], tmp_path / "out", tokenizer_model=tokenizer_model)
