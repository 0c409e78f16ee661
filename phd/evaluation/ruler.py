"""RULER's tasks (arXiv 2404.06654) without a download: needles, variables, common words and frequent words.

Wording, numbers and scores are RULER's. Variables, words and scores are made by the functions of the harness,
which run offline. Its needles do not: they fetch a sentence splitter and a text. Here they lie in the user's
own corpus, and those scores compare with each other, not with published ones. RULER's two tasks of questions
are downloads; ``phd_qa`` is in their manner.

A model's score is the share of the answers that stand in what it writes. The prompt, and the tokens that it
may write, fill a length of the grid as nearly as they can.
"""

import importlib.util
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from phd.evaluation.corpus import write_cells
from phd.evaluation.haystack import Haystack, largest
from phd.evaluation.long_context import cell
from phd.evaluation.needles import NEEDLES, Prompt, among_lines, in_corpus

Record = dict[str, Any]
"""A prompt, "context", and its "answers"."""
TOKENS = {**dict.fromkeys(NEEDLES, 128), "ruler_vt": 30, "ruler_cwe": 120, "ruler_fwe": 50}
"""The tasks, and how many tokens a model may write in RULER."""
SAMPLES = 50
"""Prompts of a length unless told; RULER's tables are of 500."""
LENGTHS_FROM = 1024
"""The example and the question of ruler_cwe take some 700 tokens."""
RULER = "phd_ruler"
"""All of them."""
OF_CORPUS = tuple(name for name, needles in NEEDLES.items() if needles.haystack == "corpus")
OF_WORDS = (*(name for name, needles in NEEDLES.items() if needles.keys == "words"), "ruler_cwe")
"""Those whose English words are of the package wonderwords."""
DOWNLOADED = ("ruler", "ruler_qa_hotpot", "ruler_qa_squad")
"""The harness's names for what is not here."""

HOPS, EXAMPLE_TOKENS = 4, 500
"""Of ruler_vt: assignments after the first, and tokens of the worked example at most."""
COMMON = 10
"""Common words of ruler_cwe."""
FREQUENT_LEAST = 74
"""Words from which on the third coded word of ruler_fwe stands more often than the fourth: their shares are
1 / (16 zeta(2)) and 1 / (25 zeta(2)), and counts are rounded down."""


def refuse_missing(tasks: Sequence[str], corpus: Path | None) -> None:
    """Raises ValueError where one of the harness's or of our names needs what is not there."""
    if names := [name for name in tasks if name in DOWNLOADED]:
        raise ValueError(
            f"--tasks {names[0]}: its data are downloads; {RULER} is what needs none, phd_qa asks questions "
            "about --corpus"
        )
    if corpus is None and (names := [name for name in tasks if name in OF_CORPUS]):
        raise ValueError(f"--tasks {names[0]} hides needles in a text: give --corpus")
    names = [name for name in tasks if name in OF_WORDS]
    if names and importlib.util.find_spec("wonderwords") is None:
        raise ValueError(
            f"--tasks {names[0]} takes its words from wonderwords, which is not installed: pip install "
            "'pretrain-phd[ruler]'"
        )


def write_ruler_tasks(
    tasks: Sequence[str], ruler: "Ruler", folder: Path, lengths: Sequence[int], count: int, seed: int
) -> None:
    """Write data and configuration files into ``folder``, as ``write_long_tasks`` does.

    Raises:
        ValueError: as ``Ruler.record``.
    """
    for task in tasks:
        cells, rooms = {}, {}
        for length in lengths:
            name = cell(task, length)
            cells[name], rooms[name] = ruler.records(
                task, length, [f"{seed} {task} {length} {index}" for index in range(count)]
            )
        write_cells(task, cells, {name: settings(room) for name, room in rooms.items()}, folder)


def settings(room: int) -> dict[str, Any]:
    """How a prompt is asked and scored, in the harness's words.

    Args:
        room: tokens that a model may write.
    """
    return {
        "output_type": "generate_until",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{answers}}",
        "process_results": "!function phd.evaluation.ruler.matched",
        "generation_kwargs": {"do_sample": False, "max_gen_toks": room, "until": []},
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "num_fewshot": 0,
    }


def matched(doc: Record, results: list[str]) -> dict[str, float]:
    """The share of the answers that a text holds, by the harness's own functions."""
    from lm_eval.tasks.ruler.common_utils import postprocess_pred, string_match_all

    return {"acc": string_match_all(postprocess_pred(results), [doc["answers"]])}


class Ruler:
    """Makes prompts.

    Args:
        encode: text -> token ids, as the harness encodes it.
        unknown: the id of what the tokenizer cannot write, if there is such.
        haystack: where tasks ``OF_CORPUS`` hide needles.
    """

    def __init__(
        self, encode: Callable[[str], list[int]], unknown: int | None, haystack: Haystack | None
    ) -> None:
        self.encode, self.unknown, self.haystack = encode, unknown, haystack
        self._guesses: dict[tuple[str, int], int] = {}

    def records(self, task: str, length: int, seeds: Sequence[str]) -> tuple[list[Record], int]:
        """A prompt for each seed, and how many tokens a model may write: as many as RULER says, or what the
        longest of the answers takes, of a tokenizer that spends more on them.
        """
        room = TOKENS[task]
        while True:
            records = [self.record(task, length, seed, room) for seed in seeds]
            needed = max(len(self.encode(_written(task, record["answers"]))) for record in records)
            if needed <= room:
                return records, room
            room = needed

    def record(self, task: str, length: int, seed: str, room: int) -> Record:
        """The longest prompt that leaves ``room`` in ``length`` tokens.

        Raises:
            ValueError: ``length`` is too short for the task, the corpus too short or with needles of its own,
                or the tokenizer cannot write an answer.
        """
        draw = random.Random(seed)
        if task in OF_CORPUS:
            assert self.haystack is not None
            prompt = in_corpus(NEEDLES[task], self.haystack, length, draw)
            guess = self._guesses.get((task, length))
            count = self.haystack.fit(
                length, lambda count: prompt(count)[0], len(self.haystack.words), guess, room=room
            )
            return self._made(task, length, count, prompt)
        prompt, least, most = self._without_corpus(task, length, draw)

        def tokens(more: int) -> int:
            return len(self.encode(prompt(least + more)[0])) + room

        guess = self._guesses.get((task, length), length // 8)
        more = largest(tokens, length, min(most, length) - least, max(guess - least, 0))
        if more < 0:
            raise ValueError(
                f"--lengths {length} is too short for {task}: its shortest prompt has {tokens(0):,} tokens, "
                f"the {room} to write included"
            )
        return self._made(task, length, least + more, prompt)

    def _made(self, task: str, length: int, count: int, prompt: Prompt) -> Record:
        self._guesses[task, length] = count  # about the same for the next
        context, answers = prompt(count)
        if self.unknown in self.encode(" ".join(answers)):
            raise ValueError(f"{task}: the tokenizer has no tokens for an answer in {answers}")
        return {"context": context, "answers": answers}

    def _without_corpus(self, task: str, length: int, draw: random.Random) -> "_Sized":
        seed = draw.getrandbits(32)
        if task == "ruler_cwe":
            from lm_eval.tasks.ruler.cwe_utils import WORDS

            return _Sized(partial(_common_words, length, seed), 2 * COMMON, len(WORDS))
        if task == "ruler_fwe":
            return _Sized(partial(_frequent_words, length, seed), FREQUENT_LEAST, length)
        if task == "ruler_vt":
            return _Sized(partial(_variables, self._example(length, seed), seed), 1, length)
        return _Sized(among_lines(NEEDLES[task], draw), 1, length)

    def _example(self, length: int, seed: int) -> str:
        """The worked example of ruler_vt: as RULER's, but at most a quarter of the prompt."""

        def text(more: int) -> str:
            context, answers = _tracked(1 + more, seed + 1, is_icl=True)
            return f"{context} {' '.join(answers)}\n\n"

        most = min(EXAMPLE_TOKENS, length // 4)
        return text(max(largest(lambda more: len(self.encode(text(more))), most, most, most // 30), 0))


def _written(task: str, answers: list[str]) -> str:
    """As a model may put them: numbered where the worked example has numbers."""
    if task == "ruler_cwe":
        return "".join(f" {number}. {word}" for number, word in enumerate(answers, 1))
    return " " + ", ".join(answers)


class _Sized(NamedTuple):
    prompt: Prompt
    least: int
    most: int
    """of what fills it"""


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The harness's functions draw from the generators that all share; they are left as they were."""
    import numpy as np

    state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


def _tracked(lines: int, seed: int, is_icl: bool = False) -> tuple[str, list[str]]:
    from lm_eval.tasks.ruler.vt_utils import generate_input_output

    with _seeded(seed):
        context, answers = generate_input_output(lines, 1, HOPS, is_icl=is_icl)
    return context.rstrip(), answers


def _variables(example: str, seed: int, lines: int) -> tuple[str, list[str]]:
    context, answers = _tracked(lines, seed)
    return example + context, answers


def _common_words(length: int, seed: int, words: int) -> tuple[str, list[str]]:
    """With the worked example that RULER's prompt begins with; the harness counts it, and leaves it out."""
    from lm_eval.tasks.ruler import cwe_utils

    with _seeded(seed):
        cwe_utils.RNG.seed(seed)
        example, context, answers = cwe_utils.generate_input_output(words, length, num_cw=COMMON)
    return f"{example}\n{context}", answers


def _frequent_words(length: int, seed: int, words: int) -> tuple[str, list[str]]:
    from lm_eval.tasks.ruler.fwe_utils import generate_input_output

    with _seeded(seed):  # it would shorten the text itself, by steps of a 32nd
        context, answers, _ = generate_input_output(
            length, lambda text: SimpleNamespace(input_ids=()), words, vocab_size=max(length // 50, 4)
        )
    return context, answers
