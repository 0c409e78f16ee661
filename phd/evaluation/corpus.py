"""Two tasks of the harness from a local corpus, for where no data set can be downloaded.

``corpus_perplexity``: perplexity of held-out documents. ``corpus_cloze``: which of four passages goes on
after a context; three are from elsewhere in the corpus.
"""

import json
import random
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

SETTINGS: dict[str, dict[str, Any]] = {
    "perplexity": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    },
    "cloze": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
}
"""What differs between the two, in the harness's words."""
TASKS = tuple(f"corpus_{name}" for name in SETTINGS)
CHOICES = 4
CONTEXT_WORDS, CHOICE_WORDS = 48, 8


def write_tasks(corpus: Path, folder: Path, count: int = 200, seed: int = 0) -> None:
    """Write both tasks' data and configuration files into ``folder``.

    Args:
        corpus: jsonl with a string ``text`` in each record; held out from training.
        count: at most so many documents, and as many questions.
        seed: of the passages and of the answers' places.

    Raises:
        ValueError: a record is not as said (names file and line), or there is too little text.
    """
    documents = [text for _, text in zip(range(count), read_texts(corpus), strict=False)]
    questions = make_questions(documents, count, seed)
    content: dict[str, list[Any]] = {
        "perplexity": [{"text": text} for text in documents],
        "cloze": questions,
    }
    for name, records in content.items():
        write_task(f"corpus_{name}", records, SETTINGS[name], folder)


def shorten_contexts(folder: Path, encode: Callable[[str], Sequence[int]], most: int) -> int:
    """Leave out first words of the contexts of ``corpus_cloze`` in ``folder``, as few as let each choice be
    read behind the rest.

    Args:
        encode: text to ids.
        most: tokens that the model reads.

    Returns:
        how many contexts are shorter now.
    """
    file = folder / "corpus_cloze.jsonl"
    questions = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    shortened = 0
    for question in questions:
        context, choices = question["context"], question["choices"]
        starts = [match.start() for match in re.finditer(r"\S+", context)]

        def fits(start: int, context: str = context, choices: list[str] = choices) -> bool:
            return all(len(encode(context[start:] + choice)) <= most for choice in choices)

        # the first start from which all fits, or the last word
        first = bisect_left(starts, True, hi=len(starts) - 1, key=fits)
        question["context"] = context[starts[first] :]
        shortened += first > 0
    file.write_text("".join(json.dumps(question) + "\n" for question in questions), encoding="utf-8")
    return shortened


def write_task(name: str, records: Sequence[Any], settings: Mapping[str, Any], folder: Path) -> None:
    """Write one task's data and configuration file into ``folder``.

    Args:
        records: what the placeholders of ``settings`` name in each.
        settings: how to ask and to score, in the harness's words.
    """
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        **settings,
        "metadata": {"version": 1.0},
    }
    _write_settings(name, task, folder)


def write_group(name: str, tasks: Sequence[str], settings: Mapping[str, Any], folder: Path) -> None:
    """Write the configuration file of a group of tasks, which --tasks may name as one, into ``folder``."""
    group = {"group": name, "task": list(tasks), **settings, "metadata": {"version": 1.0}}
    _write_settings(name, group, folder)


def write_cells(
    task: str,
    cells: Mapping[str, Sequence[Any]],
    settings: Mapping[str, Mapping[str, Any]],
    folder: Path,
) -> None:
    """Write the files of a task's cells (name: records) with their settings, and of their group."""
    for name, records in cells.items():
        write_task(name, records, settings[name], folder)
    mean = {"aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]}
    write_group(task, list(cells), mean, folder)


def _write_settings(name: str, content: dict[str, Any], folder: Path) -> None:
    # JSON is YAML, but for its names of functions, which have a tag
    text = re.sub(r'"(!function [\w.]+)"', r"\1", json.dumps(content, indent=2))
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def read_texts(corpus: Path) -> Iterator[str]:
    """The texts of a jsonl file, empty ones left out."""
    with open(corpus, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f'{corpus}:{number}: not a record with a "text" ({error})') from error
            if not isinstance(text, str):
                raise ValueError(f"{corpus}:{number}: text is not a string")
            if text.strip():
                yield text


def make_questions(documents: list[str], count: int, seed: int) -> list[dict[str, object]]:
    """Questions spread evenly over the documents; each wrong choice is of another place."""
    words = CONTEXT_WORDS + CHOICE_WORDS
    passages = [
        passage
        for text in documents
        for passage in _passages(text, words)
    ]  # fmt: skip
    if len(passages) < CHOICES:
        raise ValueError(
            f"the corpus is too small for questions: it has {len(passages)} passages of {words} words, "
            f"{CHOICES} are needed"
        )
    draw = random.Random(seed)
    questions: list[dict[str, object]] = []
    for index in sorted(draw.sample(range(len(passages)), min(count, len(passages)))):
        context, right = passages[index]
        others = draw.sample([i for i in range(len(passages)) if i != index], CHOICES - 1)
        choices = [passages[other][1] for other in others]
        answer = draw.randrange(CHOICES)
        choices.insert(answer, right)
        questions.append({"context": context, "choices": choices, "answer": answer})
    return questions


def _passages(text: str, words: int) -> Iterator[tuple[str, str]]:
    """(context, what follows) one after another, cut before white space."""
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    for first in range(0, len(ends) - words + 1, words):
        begin = ends[first - 1] if first else 0
        middle, end = ends[first + CONTEXT_WORDS - 1], ends[first + words - 1]
        yield text[begin:middle].lstrip(), text[middle:end]
