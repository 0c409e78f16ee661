"""RULER's tasks: each prompt is answered from its own text, fills its length, and the harness scores it."""

import json
import random
import re
import sys
from collections import Counter
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from phd.evaluation import needles
from phd.evaluation.haystack import Haystack
from phd.evaluation.ruler import OF_CORPUS, TOKENS, Ruler, matched, refuse_missing
from tests.evaluation.test_long_context import call, corpus, evaluate  # noqa: F401 (one is a fixture)

SYLLABLES = ["ba", "ko", "mi", "ru", "sen", "tal", "ve", "zor", "ny", "lu"]
NEEDLE = re.compile(r"One of the special magic (?:numbers|uuids) for (\S+) is: (\S+)\.")


@pytest.fixture(scope="module", autouse=True)
def words():
    """A wonderwords with few words, whether it is installed or not."""
    made = [a + b + c for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES]
    categories = {"adjective": made[:50], "noun": made[50:800], "verb": made[800:]}
    module = ModuleType("wonderwords")
    module.__spec__ = ModuleSpec("wonderwords", None)
    module.RandomWord = lambda: type("RandomWord", (), {
        "_categories": categories,
        "filter": lambda self, include_categories: categories[include_categories[0]],
    })()  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wonderwords", module)
        patch.delitem(sys.modules, "lm_eval.tasks.ruler.cwe_utils", raising=False)
        needles._english.cache_clear()
        yield
        sys.modules.pop("lm_eval.tasks.ruler.cwe_utils", None)
        needles._english.cache_clear()


@pytest.fixture(scope="module")
def ruler(corpus):  # noqa: F811
    """A token is a word."""
    return Ruler(str.split, None, Haystack(corpus, str.split, None, 3000))


def prompt_of(ruler, task, length, seed):
    return ruler.record(task, length, seed, TOKENS[task])


def solve(context: str) -> list[str]:
    """The answers, read from the text alone."""
    if context.startswith("Memorize and track"):
        text = context.rsplit("Memorize and track", 1)[1]
        found = re.findall(r"VAR (\w+) = (\d+)", text)
        ((first, value),) = found
        assert context.endswith(f"5 variables are assgined the value {value}, they are:")
        names, after = [first], dict(re.findall(r"VAR (\w+) = VAR (\w+)", text))
        while names[-1] in after.values():
            names.append(next(name for name, before in after.items() if before == names[-1]))
        return names
    if context.startswith("Below is a numbered list"):
        text = context.rsplit("Below is a numbered list", 1)[1]
        counts = Counter(re.findall(r"\d+\. (\S+)", text))
        (_, tenth), (_, eleventh) = counts.most_common(11)[9:]
        assert tenth > eleventh
        return [word for word, _ in counts.most_common(10)]
    if context.startswith("Read the following coded text"):
        counts = Counter(re.findall(r"\b[a-z]{6}\b", context.split("words. ")[1].split("\nQuestion")[0]))
        (_, third), (_, fourth) = counts.most_common(4)[2:]
        assert third > fourth
        return [word for word, _ in counts.most_common(3)]
    text, ask = context.rsplit("\nWhat ", 1)
    asked = re.split(r", and |, ", re.findall(r"for (.+) mentioned .+\?", ask)[0])
    return [value for key, value in NEEDLE.findall(text) if key in asked]


@pytest.mark.parametrize("task", TOKENS)
def test_a_prompt_has_its_answers(ruler, task):
    state, numpy_state = random.getstate(), np.random.get_state()[1].tolist()
    answers = []
    for length in (900, 2000):
        records = [prompt_of(ruler, task, length, f"{length} {seed}") for seed in range(4)]
        assert records[2] == prompt_of(Ruler(str.split, None, ruler.haystack), task, length, f"{length} 2")
        for record in records:
            context = record["context"]
            assert not context[-1].isspace()
            assert Counter(solve(context)) == Counter(record["answers"])
            unit = {"ruler_cwe": 2 * 6, "ruler_fwe": 4}.get(task, 20)  # what one more would be
            assert length - unit <= len(context.split()) + TOKENS[task] <= length
            answers.append(tuple(record["answers"]))
    assert len({*answers}) == 8
    assert (random.getstate(), np.random.get_state()[1].tolist()) == (state, numpy_state)


def test_needles(ruler):
    """How many, of which keys, and among what."""
    for task, hidden, asked, lines in (
        ("niah_single_1", 1, 1, "noise"), ("niah_single_2", 1, 1, ""), ("niah_single_3", 1, 1, ""),
        ("niah_multikey_1", 4, 1, ""), ("niah_multivalue", 4, 1, ""), ("niah_multiquery", 4, 4, ""),
        ("niah_multikey_2", 30, 1, "needles"), ("niah_multikey_3", 30, 1, "needles"),
    ):  # fmt: skip
        context = prompt_of(ruler, task, 900, "7")["context"]
        text, ask = context.rsplit("\nWhat ", 1)
        found = NEEDLE.findall(text)
        assert len(found) == hidden if lines != "needles" else len(found) > hidden
        assert len({key for key, _ in found}) == (1 if task == "niah_multivalue" else len(found))
        assert len(re.findall(r"[a-z]+-[a-z]+|\w{8}(?:-\w{4}){3}-\w{12}", ask)) == 2 * asked
        assert all(len(value) == (36 if "_3" in task else 7) for _, value in found)
        between = " ".join(NEEDLE.sub("", text.split("\n", 1)[1]).split())
        if task in OF_CORPUS:
            assert between in " ".join("".join(ruler.haystack.words * 2).split())
        else:
            assert between.replace(needles.NOISE, "").strip() == ""
    depths = []
    for seed in range(30):
        text = prompt_of(ruler, "niah_single_2", 900, str(seed))["context"]
        depths.append(text.index("One of the special") / len(text))
    assert min(depths) < 0.3 and max(depths) > 0.7


def test_a_worked_example_comes_first(ruler):
    tracked = prompt_of(ruler, "ruler_vt", 2500, "1")["context"]
    example, question = re.split(r"\n\n(?=Memorize)", tracked)
    *given, tail = example.rsplit("they are:", 1)
    assert set(tail.split()) == set(solve(given[0] + "they are:")) and len(tail.split()) == 5
    assert 450 < len(example.split()) <= 500 < len(question.split())
    listed = prompt_of(ruler, "ruler_cwe", 900, "1")["context"]
    example = re.split(r"\n(?=Below)", listed)[0].rsplit("list are:", 1)
    assert set(re.findall(r"[a-z]+", example[1])) == set(solve(example[0]))


def test_a_score_is_the_share_of_answers():
    doc = {"answers": ["Alpha", "beta", "gamma", "delta"]}
    assert matched(doc, ["1. alpha\x07, BETA and gamm"]) == {"acc": 0.5}


def test_refused(ruler, corpus, tmp_path, monkeypatch):  # noqa: F811
    for name in ("ruler", "ruler_qa_squad"):
        with pytest.raises(ValueError, match=f"--tasks {name}: its data are downloads; phd_ruler is"):
            call("model", "--corpus", corpus, "--tasks", name)
    with pytest.raises(ValueError, match="--tasks niah_single_2 hides needles in a text: give --corpus"):
        call("model", "--tasks", "phd_ruler")
    with pytest.raises(ValueError, match="--lengths 200 is too short for ruler_cwe: its shortest prompt"):
        prompt_of(ruler, "ruler_cwe", 200, "0")
    with pytest.raises(ValueError, match=r"--lengths 180 is too short: of the corpus \d+ words"):
        prompt_of(ruler, "niah_multiquery", 180, "0")
    with pytest.raises(ValueError, match="ruler_fwe: the tokenizer has no tokens for an answer in "):
        prompt_of(Ruler(lambda text: [*text], " ", None), "ruler_fwe", 5000, "1")
    file = tmp_path / "needles.jsonl"
    file.write_text(json.dumps({"text": "the Special Magic of words " * 300}) + "\n")
    own = Ruler(str.split, None, Haystack(file, str.split, None, 900))
    with pytest.raises(ValueError, match="needles.jsonl holds needles of its own"):
        prompt_of(own, "niah_single_2", 900, "0")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refuse_missing(["niah_multikey_3", "ruler_vt", "ruler_fwe"], None)
    with pytest.raises(
        ValueError,
        match=r"niah_single_1 takes its words from wonderwords, which is not installed: pip install",
    ):
        refuse_missing(["niah_single_1"], None)


def test_room_for_the_answers():
    """A tokenizer that spends more on them than RULER gives is given more; the prompt is shorter by that."""
    letters = Ruler(lambda text: [*text], None, None)
    records, room = letters.records("ruler_vt", 3000, ["1", "2", "3"])
    assert room == len(" ABCDE, ABCDE, ABCDE, ABCDE, ABCDE") > TOKENS["ruler_vt"]
    assert all(len(record["context"]) + room <= 3000 for record in records)
    assert Ruler(str.split, None, None).records("ruler_vt", 900, ["1"])[1] == TOKENS["ruler_vt"]
    (record,), room = Ruler(lambda text: [*text] * 2, None, None).records("ruler_cwe", 20000, ["1"])
    assert room == 2 * (sum(map(len, record["answers"])) + len(" 1. ") * 9 + len(" 10. "))


class Oracle(LlamaForCausalLM):
    """Writes the answers, all but the first of several."""

    def __init__(self, tokenizer):
        shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        super().__init__(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=1500, **shape))
        self.tokenizer = tokenizer

    def generate(self, input_ids, attention_mask, max_length, **kwargs):
        assert max_length <= 1500
        texts = self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        solved = [solve(text) for text in texts]
        rows = [self.tokenizer.encode(f" {', '.join(found[1:] or found)}") for found in solved]
        most = max(map(len, rows))
        assert most <= max_length - input_ids.shape[1]
        return torch.cat([input_ids, torch.tensor([row + [0] * (most - len(row)) for row in rows])], dim=1)


def test_an_oracle(ruler, corpus, tmp_path, monkeypatch, capsys):  # noqa: F811
    """Through the harness, tokens and all."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([prompt_of(ruler, task, 900, "9")["context"] for task in TOKENS], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>")
    report = evaluate(
        Oracle(tokenizer), tokenizer, corpus, tmp_path, monkeypatch,
        "--tasks", "phd_ruler", "--lengths", 1500, "--limit", 2,
    )  # fmt: skip
    several = {"niah_multivalue": 3 / 4, "niah_multiquery": 3 / 4, "ruler_vt": 4 / 5, "ruler_cwe": 9 / 10}
    wanted = {**dict.fromkeys(TOKENS, 1.0), **several, "ruler_fwe": 2 / 3}
    assert {grid["task"]: grid["accuracy"][0][0] for grid in report["grids"]} == pytest.approx(wanted)
    assert {row["task"]: row["value"] for row in report["results"]} == pytest.approx(wanted)
    assert all(grid["samples"] == 2 and grid["depths"] == [None] for grid in report["grids"])
    assert "niah_multiquery" in capsys.readouterr().out
