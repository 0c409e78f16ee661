"""Tasks from a corpus, and `phd eval` on them."""

import json
from argparse import ArgumentParser

import pytest

from phd.evaluation import cli
from phd.evaluation.corpus import (
    CHOICE_WORDS,
    CONTEXT_WORDS,
    make_questions,
    read_texts,
    shorten_contexts,
    write_group,
    write_tasks,
)

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "home", "again"]


def document(seed: int, words: int = 150) -> str:
    return " ".join(WORDS[(seed * 7 + i * i) % len(WORDS)] + str((seed + i) % 10) for i in range(words))


@pytest.fixture
def corpus(tmp_path):
    file = tmp_path / "held_out.jsonl"
    file.write_text("".join(json.dumps({"text": document(seed)}) + "\n" for seed in range(6)))
    return file


def test_questions_hold_the_text_that_follows():
    documents = [document(seed) for seed in range(4)]
    questions = make_questions(documents, 100, seed=0)
    assert len(questions) == 4 * (150 // (CONTEXT_WORDS + CHOICE_WORDS))
    for question in questions:
        right = question["choices"][question["answer"]]
        assert any(question["context"] + right in text for text in documents)
        assert len(question["choices"]) == 4
        assert all(len(choice.split()) == CHOICE_WORDS for choice in question["choices"])
    assert questions == make_questions(documents, 100, seed=0)
    assert questions != make_questions(documents, 100, seed=1)
    assert len({question["answer"] for question in questions}) > 1


def test_too_little_text():
    with pytest.raises(ValueError, match="too small for questions: it has 2 passages"):
        make_questions([document(0)], 10, seed=0)


@pytest.mark.parametrize("line", ["nothing", '{"no": "text"}', '{"text": 3}'])
def test_a_bad_record_is_named(tmp_path, line):
    file = tmp_path / "bad.jsonl"
    file.write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"bad.jsonl:2: "):
        list(read_texts(file))


def test_files(corpus, tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    write_tasks(corpus, folder, count=3)
    assert len((folder / "corpus_perplexity.jsonl").read_text().splitlines()) == 3
    assert "corpus_cloze" in (folder / "corpus_cloze.yaml").read_text()


def test_contexts_lose_first_words_to_fit_a_model(corpus, tmp_path):
    """No more than have to go, for the longest choice."""
    write_tasks(corpus, tmp_path, count=5)
    file = tmp_path / "corpus_cloze.jsonl"
    before = file.read_text()
    assert shorten_contexts(tmp_path, str.split, most=CONTEXT_WORDS + CHOICE_WORDS) == 0
    assert file.read_text() == before
    assert shorten_contexts(tmp_path, str.split, most=20) == 5
    for old, new in zip(before.splitlines(), file.read_text().splitlines(), strict=True):
        whole, short = json.loads(old), json.loads(new)
        assert (
            whole["context"].endswith(short["context"]) and len(short["context"].split()) == 20 - CHOICE_WORDS
        )
        assert (whole["choices"], whole["answer"]) == (short["choices"], short["answer"])
    shorten_contexts(tmp_path, str.split, most=3)  # nothing fits: the harness's model refuses it
    assert all(len(json.loads(line)["context"].split()) == 1 for line in file.read_text().splitlines())


def call(*arguments) -> int:
    parser = ArgumentParser()
    cli.add_arguments(parser)
    return cli.run(parser.parse_args([str(x) for x in arguments]))


@pytest.fixture(scope="module")
def folder(make_model, tmp_path_factory):
    import sentencepiece

    from phd.hf.tokenizer import load_tokenizer

    path = tmp_path_factory.mktemp("model")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([document(seed) for seed in range(9)]), model_prefix=str(path / "t"),
        vocab_size=90, model_type="bpe", normalization_rule_name="identity", add_dummy_prefix=False,
        remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    make_model("PHD-CSWA-3-5-12").save_pretrained(path)
    load_tokenizer(path / "t.model").save_pretrained(path)
    return path


def test_end_to_end(folder, corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    output = tmp_path / "results.json"
    assert call(folder, "--corpus", corpus, "--limit", 4, "--output", output) == 0
    printed = capsys.readouterr().out
    assert "corpus_cloze" in printed
    results = {(r["task"], r["metric"]): r["value"] for r in json.loads(output.read_text())["results"]}
    assert 0 <= results["corpus_cloze", "acc"] <= 1
    assert results["corpus_perplexity", "byte_perplexity"] > 1


def test_the_papers_seven_are_a_group(tmp_path):
    """Their data is not here; their names are the harness's, of whose folders all would take a minute."""
    import lm_eval.tasks

    theirs = cli.Path(lm_eval.tasks.__file__).parent
    folders = ("arc", "commonsense_qa", "hellaswag", "mmlu/default", "piqa", "winogrande")
    write_group(cli.PAPER, cli.SEVEN, {}, tmp_path)
    paths = [tmp_path, *(theirs / folder for folder in folders)]
    manager = lm_eval.tasks.TaskManager(include_path=paths, include_defaults=False)
    assert cli.PAPER in manager.all_groups
    assert set(cli.SEVEN) <= set(manager.all_tasks)


def test_refused(folder, corpus, monkeypatch):
    import lm_eval.tasks

    class WithoutDefaults(lm_eval.tasks.TaskManager):
        """Which it takes the harness long to look through."""

        def __init__(self, include_path, include_defaults):
            assert include_defaults
            super().__init__(include_path=include_path, include_defaults=False)

    with pytest.raises(ValueError, match="give --tasks, --corpus, or both"):
        call(folder)
    with monkeypatch.context() as patch:
        patch.setattr(lm_eval.tasks, "TaskManager", WithoutDefaults)
        with pytest.raises(ValueError, match="--tasks nosuchtask: the harness has no such task"):
            call(folder, "--tasks", "nosuchtask", cli.PAPER)
    with pytest.raises(ValueError, match="--batch-size must be at least 1"):
        call(folder, "--corpus", corpus, "--batch-size", 0)


def test_batch_size_of_the_harness(folder, corpus, capsys):
    assert call(folder, "--corpus", corpus, "--limit", 2, "--batch-size", "auto") == 0
    with pytest.raises(SystemExit):
        call(folder, "--corpus", corpus, "--batch-size", "many")
    assert "--batch-size" in capsys.readouterr().err
