"""Tasks for long contexts: their prompts, their scores, and `phd eval` on them."""

import json
import random
import re
from argparse import ArgumentParser
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutputWithPast

from phd import pattern_flags
from phd.evaluation import cli
from phd.evaluation.haystack import Haystack, near_sentence
from phd.evaluation.long_context import (
    DOCUMENT,
    KEYS,
    PERSONS,
    PLACES,
    default_lengths,
    facts,
    needle,
    question,
)

SYLLABLES = ["ba", "ko", "mi", "ru", "sen", "tal", "ve", "zor", "ny", "lu"]
NEEDLE = re.compile(r"The secret number of the (\w+) is (\d+)\.")
MOVE = re.compile(r"(\w+) went to the (\w+)\.")


def texts(count: int = 12, words: int = 300) -> list[str]:
    draw = random.Random(0)
    return [
        " ".join(
            "".join(draw.choices(SYLLABLES, k=draw.randint(1, 5))) + ("." if draw.random() < 0.1 else "")
            for _ in range(words)
        )
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    file = tmp_path_factory.mktemp("corpus") / "held_out.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts()))
    return file


@pytest.fixture(scope="module")
def tokenizer():
    """Of bytes, merged to syllables."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    english = (
        "The secret number of the is Question: What is Answer: Where is now? went to the in the "
        'Document Which word is missing in "____"?'
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(
        [*texts(), *[f"{english} {' '.join(KEYS + PERSONS + PLACES)}"] * 99], trainer
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


@pytest.fixture(scope="module")
def haystack(corpus, tokenizer):
    return Haystack(corpus, tokenizer.encode, tokenizer.unk_token_id, 512)


def assert_fills(record, length, tokenizer):
    """At most ``length`` tokens, and less by no more than a word and what its place can change."""
    tokens = len(tokenizer.encode(record["context"] + record["answer"]))
    assert length - 10 < tokens <= length


@pytest.mark.parametrize("length", [200, 511])
def test_needle(haystack, tokenizer, length):
    depths = [0, 30, 50, 100]
    records = needle(haystack, length, depths, random.Random(3))
    assert records == needle(haystack, length, depths, random.Random(3))
    assert records != needle(haystack, length, depths, random.Random(4))
    for depth, record in zip(depths, records, strict=True):
        context, answer = record["context"], record["answer"]
        assert_fills(record, length, tokenizer)
        (found,) = NEEDLE.finditer(context)
        assert answer == f" {found[2]}"
        assert context.count(found[2]) == 1
        text, ask = context.split("\n\nQuestion: ")
        assert ask.endswith(f"The secret number of the {found[1]} is")
        before, after = text[: found.start()].split(), text[found.end() :].split()
        assert len(before) / len(before + after) == pytest.approx(depth / 100, abs=0.06)
        haystack_only = " ".join(before + after)
        assert haystack_only in " ".join("".join(haystack.words * 2).split())


def test_needle_stands_between_sentences_where_one_ends_near():
    words = [" one", " two.", *[" more"] * 40]
    assert near_sentence(words, 3) == 2
    assert near_sentence(words, 20) == 20
    assert near_sentence(words, 42) == 42
    assert near_sentence(words, 1) == 0


def test_facts(haystack, tokenizer):
    answers = Counter()
    for seed in range(8):
        record = facts(haystack, 400, random.Random(seed))
        assert record == facts(haystack, 400, random.Random(seed))
        assert_fills(record, 400, tokenizer)
        text, ask = record["context"].split("\n\nQuestion: ")
        moves = MOVE.findall(text)
        assert len(moves) == 9 and {person for person, _ in moves} <= set(PERSONS)
        asked = re.fullmatch(r"Where is (\w+) now\?\nAnswer: (\w+) is in the", ask)
        assert asked and asked[1] == asked[2]
        assert record["answer"] == f" {dict(moves)[asked[1]]}"  # the last of each person's
        between = MOVE.sub("", text)
        assert not any(name in between for name in (*PERSONS, *PLACES))
        mine = [place for person, place in moves if person == asked[1]]
        assert len(mine) == 3 and all(a != b for a, b in zip(mine, mine[1:], strict=False))
        answers[record["answer"]] += 1
    assert len(answers) > 2


@pytest.mark.parametrize("length", [300, 512])
def test_question(haystack, tokenizer, length):
    records = [question(haystack, length, random.Random(seed)) for seed in range(6)]
    assert records == [question(haystack, length, random.Random(seed)) for seed in range(6)]
    for record in records:
        assert_fills(record, length, tokenizer)
        answer = record["answer"].strip()
        assert record["context"].casefold().count(answer) == 1
        assert solve(record["context"]) == record["answer"]
        documents = re.split(r"\n\nDocument \d+: ", "\n\n" + record["context"].split("\n\nQuestion: ")[0])[1:]
        assert all(len(text.split()) == DOCUMENT for text in documents[:-1])
        assert len(documents) > 1
    assert len({record["answer"] for record in records}) > 1


def test_default_lengths():
    assert default_lengths(4096) == [512, 1024, 2048, 4096]
    assert default_lengths(5000) == [512, 1024, 2048, 4096]
    assert default_lengths(256) == [256]


def test_refused_text(tmp_path, corpus, tokenizer, haystack):
    file = tmp_path / "short.jsonl"
    file.write_text(json.dumps({"text": texts(1, 100)[0]}) + "\n")
    short = Haystack(file, tokenizer.encode, None, 512)
    for make in (facts, question, lambda *arguments: needle(*arguments[:2], [50], arguments[2])):
        with pytest.raises(ValueError, match=r"short.jsonl is too short for prompts of 512 tokens: its 100"):
            make(short, 512, random.Random(0))
    file.write_text(json.dumps({"text": "one sentence"}) + "\n")
    with pytest.raises(ValueError, match=r"too short for prompts of 512 tokens: its 2 words make"):
        question(Haystack(file, tokenizer.encode, None, 512), 512, random.Random(0))
    file.write_text("")
    with pytest.raises(ValueError, match="has no text"):
        Haystack(file, tokenizer.encode, None, 512)
    with pytest.raises(ValueError, match=r"--lengths 60 is too short: of the corpus \d+ words fit in"):
        needle(haystack, 60, [50], random.Random(0))
    digits = Haystack(corpus, tokenizer.encode, tokenizer.encode("7")[0], 512)
    with pytest.raises(ValueError, match="the tokenizer has no tokens for the answer ' .*7"):
        for seed in range(30):
            needle(digits, 300, [50], random.Random(seed))
    file.write_text(json.dumps({"text": " ".join(PLACES)}) + "\n")
    with pytest.raises(ValueError, match="speaks of too many"):
        facts(Haystack(file, tokenizer.encode, None, 512), 512, random.Random(0))


def solve(text: str) -> str:
    """The answer to any of the tasks' prompts, read from the text alone."""
    context, ask = text.rsplit("\n\nQuestion: ", 1)
    if asked := re.search(r"secret number of the (\w+)", ask):
        return f" {dict(NEEDLE.findall(context))[asked[1]]}"
    if asked := re.match(r"Where is (\w+)", ask):
        return f" {dict(MOVE.findall(context))[asked[1]]}"
    ((before, after),) = re.findall(r'"(.*) ____ (.*)"', ask, re.DOTALL)
    (found,) = re.findall(re.escape(before) + r"\s+(\S+)\s+" + re.escape(after), context)
    return f" {found}"


class Oracle(LlamaForCausalLM):
    """Answers each prompt rightly, after it has been read and token by token."""

    def __init__(self, tokenizer, right=True):
        shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        super().__init__(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **shape))
        self.tokenizer, self.right = tokenizer, right

    def forward(self, input_ids, attention_mask, past_key_values=None, **kwargs):
        if past_key_values is None:  # the contexts
            answers = []
            for ids, mask in zip(input_ids, attention_mask.bool(), strict=True):
                assert mask.sum() <= 512
                answers.append(self.tokenizer.encode(solve(self.tokenizer.decode(ids[mask]))))
            tokens = torch.tensor([[answer[0]] for answer in answers])
            cache = SimpleNamespace(answers=answers)
            cache.batch_select_indices = lambda rows: setattr(
                cache, "answers", [answers[row] for row in rows.tolist()]
            )
        else:
            cache = past_key_values
            count = input_ids.shape[1]
            padded = [[*answer, *[0] * count][1 : count + 1] for answer in cache.answers]
            tokens = torch.tensor(padded)
        if not self.right:  # only the last token of an answer is wrong
            last = torch.tensor([len(answer) for answer in cache.answers])[:, None]
            column = torch.arange(tokens.shape[1]) + (past_key_values is not None)
            tokens = torch.where(column == last - 1, tokens - 1, tokens)
        logits = torch.nn.functional.one_hot(tokens, len(self.tokenizer)).float()
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache)


def call(*arguments) -> int:
    parser = ArgumentParser()
    cli.add_arguments(parser)
    return cli.run(parser.parse_args([str(x) for x in arguments]))


def evaluate(model, tokenizer, corpus, tmp_path, monkeypatch, *arguments):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(cli, "load_model", lambda *arguments: (model.eval(), tokenizer))
    output = tmp_path / "results.json"
    assert call("model", "--corpus", corpus, "--output", output, *arguments) == 0
    return json.loads(output.read_text())


ALL = (
    "--tasks",
    "phd_needle",
    "phd_facts",
    "phd_qa",
    "--lengths",
    "512,200",
    "--depths",
    "0,100",
    "--limit",
    2,
)


@pytest.mark.parametrize("right", [True, False])
def test_an_oracle(right, corpus, tokenizer, tmp_path, monkeypatch, capsys):
    """Scores 1, and 0 if it errs in the last token of each answer."""
    model = Oracle(tokenizer, right)
    report = evaluate(model, tokenizer, corpus, tmp_path, monkeypatch, *ALL, "--num-fewshot", 1)
    wanted = float(right)
    assert [grid["task"] for grid in report["grids"]] == ["phd_needle", "phd_facts", "phd_qa"]
    for grid in report["grids"]:
        depths = [0, 100] if grid["task"] == "phd_needle" else [None]
        assert (grid["lengths"], grid["depths"], grid["samples"]) == ([200, 512], depths, 2)
        assert grid["accuracy"] == [[wanted, wanted]] * len(depths)
    means = {row["task"]: (row["metric"], row["value"]) for row in report["results"]}
    assert means == dict.fromkeys(("phd_needle", "phd_facts", "phd_qa"), ("acc", wanted))
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG\r\n")
    printed = capsys.readouterr().out
    assert "accuracy by length in tokens" in printed and "100%" in printed


def test_a_random_model(corpus, tokenizer, tmp_path, monkeypatch):
    """And the pattern that is asked for reaches it, as does the scale that the longest prompt needs."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=130, **shape))
    frequencies = model.model.rotary_emb.inv_freq
    patterned = []

    def with_layers(*arguments):
        patterned.append(pattern_flags.with_layers(*arguments))
        return patterned[0]

    monkeypatch.setattr(cli, "with_layers", with_layers)
    pattern = ("--attention-pattern", "sink.64.0.2,full", "--rope-scale", "auto")
    report = evaluate(model, tokenizer, corpus, tmp_path, monkeypatch, *ALL[:-1], 5, *pattern)
    accuracies = [value for grid in report["grids"] for row in grid["accuracy"] for value in row]
    assert len(accuracies) == 8
    assert sum(accuracies) / 8 < 0.1
    assert report["attention_pattern"] == "1sink.64.0.2-1full"
    assert patterned[0].config.phd_variant == "1sink.64.0.2-1full"
    assert report["rope_scale"] == 4 and patterned[0].config.max_position_embeddings == 520
    assert torch.equal(patterned[0].model.rotary_emb.inv_freq, frequencies / 4)


def test_refused(corpus, tokenizer, tmp_path, monkeypatch):
    for arguments, message in (
        (("--tasks", "phd_qa"), "--tasks phd_qa is made from a text: give --corpus"),
        (("--corpus", corpus, "--lengths", 512), "--lengths goes with --tasks phd_needle, phd_facts, phd_qa"),
        (("--corpus", corpus, "--tasks", "phd_qa", "--rope-scale", "auto"), "auto goes with --lengths"),
        (("--corpus", corpus, "--tasks", "phd_qa", "--depths", 5), "--depths goes with --tasks phd_needle"),
        (("--corpus", corpus, "--tasks", "phd_needle", "--depths", "5,101"), "0 to 100, got 101"),
        (("--corpus", corpus, "--tasks", "phd_needle", "--output", "a.png"), "is for JSON"),
    ):
        with pytest.raises(ValueError, match=message):
            call("model", *arguments)
    for lengths, message in (("200,1024", "the model reads at most 512"), ("0,200", "at least 1, got 0")):
        with pytest.raises(ValueError, match=message):
            evaluate(
                Oracle(tokenizer), tokenizer, corpus, tmp_path, monkeypatch,
                "--tasks", "phd_needle", "--lengths", lengths,
            )  # fmt: skip
