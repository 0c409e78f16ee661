"""Tasks of the harness for long contexts, from a corpus at hand: each over a grid of lengths in tokens.

``phd_needle``, a needle in a haystack: one sentence with a number, at a depth of the text, asked for at its
end. ``phd_facts``, in the manner of BABILong: moves of several persons, strewn over the text; where is one of
them? ``phd_qa``, in the manner of RULER's QA: documents, and a word that one of them alone has, asked for by
what stands around it.

Scored by whether each token of the answer is the likeliest after those before it. That is exactly whether
greedy decoding begins with the answer, for the cost of one pass over the context and one over the answer, and
with no text to parse. CachedLM reads the answer with the context's cache, as a decoding model does.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from phd.evaluation.corpus import write_cells
from phd.evaluation.haystack import Haystack, insert

Record = dict[str, str]
"""A prompt, "context", and its "answer", which begins with a space."""

KEYS = (
    *("accordion", "barometer", "candlestick", "dictionary", "envelope", "fiddle", "gramophone", "hammock"),
    *("inkwell", "kettle", "lantern", "mandolin", "napkin", "parasol", "rowboat", "suitcase", "teapot"),
)
PERSONS = (
    *("Ambrose", "Beatrix", "Cosima", "Dagmar", "Ephraim", "Fergus", "Gwendolyn", "Horatio", "Ignatius"),
    *(
        "Jocasta",
        "Leopold",
        "Marguerite",
        "Octavia",
        "Percival",
        "Rosamund",
        "Thaddeus",
        "Ulrike",
        "Wilhelmina",
    ),
)
PLACES = (
    *("aquarium", "bakery", "brewery", "cannery", "distillery", "foundry", "gymnasium", "lighthouse"),
    *("monastery", "observatory", "orchard", "pharmacy", "planetarium", "quarry", "sawmill", "tannery"),
    *("vineyard", "warehouse"),
)
MOVING, MOVES, ROOMS = 3, 3, 6
"""Persons, moves of each, and the places that they move between."""
DOCUMENT, BEFORE, AFTER = 60, 6, 4
"""Words of a document, and those quoted on each side of the missing one."""
SHORTEST = 4
"""Letters of a missing word."""
TRIES = 50

SETTINGS = {
    "output_type": "loglikelihood",
    "doc_to_text": "{{context}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "num_fewshot": 0,  # the harness then adds no examples, which would lengthen the prompt
}
"""How every cell is asked and scored, in the harness's words."""
SAMPLES = {"phd_needle": 10, "phd_facts": 50, "phd_qa": 50}
"""The tasks, and how many prompts of a length (and of a depth, for the needle) unless told."""
LENGTHS_FROM = 512
DEPTHS = (0, 25, 50, 75, 100)


def default_lengths(max_length: int, least: int = LENGTHS_FROM) -> list[int]:
    """Powers of two from ``least`` up to the model's longest; that alone if it is shorter."""
    lengths = [1 << bit for bit in range(max_length.bit_length()) if least <= 1 << bit <= max_length]
    return lengths or [max_length]


def cell(task: str, length: int, depth: int | None = None) -> str:
    """The harness's name of one cell of a task's grid."""
    return f"{task}_{length}" if depth is None else f"{task}_{length}_{depth}"


def write_long_tasks(
    tasks: Iterable[str],
    haystack: Haystack,
    folder: Path,
    lengths: Sequence[int],
    depths: Sequence[int],
    count: int | None,
    seed: int,
) -> None:
    """Write data and configuration files into ``folder``: a task for each cell, and for each of ``tasks`` a
    group of them.

    Args:
        depths: of the needle, in percent of the text before it.
        count: prompts of a cell; None for ``SAMPLES``.
        seed: of everything drawn.

    Raises:
        ValueError: the corpus is too short, or a length too short or without an answer of its own.
    """
    for task in tasks:
        cells: dict[str, list[Record]] = {}
        for length in lengths:
            samples = [
                random.Random(f"{seed} {task} {length} {index}") for index in range(count or SAMPLES[task])
            ]
            if task == "phd_needle":
                rows = [needle(haystack, length, depths, draw) for draw in samples]
                for column, depth in enumerate(depths):
                    cells[cell(task, length, depth)] = [row[column] for row in rows]
            else:
                make = facts if task == "phd_facts" else question
                cells[cell(task, length)] = [make(haystack, length, draw) for draw in samples]
        write_cells(task, cells, dict.fromkeys(cells, SETTINGS), folder)


def needle_statement(key: str) -> str:
    """The sentence that hides a number, without the number."""
    return f"The secret number of the {key} is"


def needle_question(key: str) -> str:
    """What asks for the number, up to where it is to come."""
    return f"\n\nQuestion: What is the secret number of the {key}?\nAnswer: {needle_statement(key)}"


def needle_code(draw: random.Random) -> str:
    """A number to hide."""
    return str(draw.randrange(10000, 100000))


def needle(haystack: Haystack, length: int, depths: Sequence[int], draw: random.Random) -> list[Record]:
    """A prompt for each depth, alike but for the needle's place."""
    start, text = _passage(haystack, length, draw)
    key = draw.choice(KEYS)
    code = needle_code(draw)
    while code in text:
        code = needle_code(draw)
    statement = needle_statement(key)
    if statement.casefold() in text:
        raise ValueError(f"{haystack.corpus} holds needles of its own: {statement!r}")

    def at(depth: int) -> Callable[[int], str]:
        sentences = [(depth / 100, f" {statement} {code}.")]
        return lambda count: insert(haystack.passage(start, count), sentences) + needle_question(key)

    records = []
    count = None  # about the same for each depth
    for depth in depths:
        record, count = _fitted(haystack, length, at(depth), f" {code}", len(haystack.words), count)
        records.append(record)
    return records


def facts(haystack: Haystack, length: int, draw: random.Random) -> Record:
    """A prompt with the moves of several persons, in order, at drawn places."""
    for _ in range(TRIES):
        start, text = _passage(haystack, length, draw)
        persons = [name for name in PERSONS if name.casefold() not in text]
        places = [name for name in PLACES if name not in text]
        if len(persons) >= MOVING and len(places) >= ROOMS:
            break
    else:
        raise ValueError(f"{haystack.corpus} speaks of too many of phd_facts' own persons and places")
    persons, places = draw.sample(persons, MOVING), draw.sample(places, ROOMS)
    order = persons * MOVES
    draw.shuffle(order)
    where: dict[str, str] = {}
    moves = []
    for depth, person in zip(sorted(draw.random() for _ in order), order, strict=True):
        where[person] = draw.choice([place for place in places if place != where.get(person)])
        moves.append((depth, f" {person} went to the {where[person]}."))
    asked = draw.choice(persons)
    ask = f"\n\nQuestion: Where is {asked} now?\nAnswer: {asked} is in the"

    def prompt(count: int) -> str:
        return insert(haystack.passage(start, count), moves) + ask

    return _fitted(haystack, length, prompt, f" {where[asked]}", len(haystack.words))[0]


def question(haystack: Haystack, length: int, draw: random.Random) -> Record:
    """A prompt of documents from all over the corpus, and a word of one that is nowhere else in it."""
    starts = list(range(0, len(haystack.words) - DOCUMENT + 1, DOCUMENT))
    draw.shuffle(starts)
    most = len(starts) * DOCUMENT

    def documents(count: int) -> str:
        texts = [
            "".join(haystack.words[start : start + min(DOCUMENT, count - number * DOCUMENT)]).strip()
            for number, start in enumerate(starts[: -(-count // DOCUMENT)])
        ]
        return "\n\n".join(f"Document {number}: {text}" for number, text in enumerate(texts, 1))

    room = haystack.fit(length, documents, most)
    text = documents(room).casefold()
    places = [place for place in range(room) if BEFORE <= place % DOCUMENT < DOCUMENT - AFTER]
    draw.shuffle(places)
    for place in places:
        first = starts[place // DOCUMENT] + place % DOCUMENT
        word = haystack.words[first].strip()
        if len(word) < SHORTEST or not word.isalnum() or text.count(word.casefold()) > 1:
            continue
        before = "".join(haystack.words[first - BEFORE : first]).strip()
        after = "".join(haystack.words[first + 1 : first + 1 + AFTER]).strip()
        ask = f'\n\nQuestion: Which word is missing in "{before} ____ {after}"?\nAnswer:'
        if word.casefold() in ask.casefold() or not haystack.writable(word):
            continue
        prompt = partial(_ask, documents, ask)
        record, count = _fitted(haystack, length, prompt, f" {word}", most, room)
        if place + AFTER < count:  # the question has not crowded it out
            return record
    raise ValueError(f"--lengths {length}: no word of {haystack.corpus} stands only once in such a prompt")


def _ask(text: Callable[[int], str], ask: str, count: int) -> str:
    return text(count) + ask


def _passage(haystack: Haystack, length: int, draw: random.Random) -> tuple[int, str]:
    """A start, and in small letters all that a prompt of ``length`` tokens can hold from there on."""
    start = draw.randrange(len(haystack.words))
    # a word has seldom less than a token
    words = haystack.passage(start, min(2 * length, len(haystack.words)))
    return start, "".join(words).casefold()


def _fitted(
    haystack: Haystack,
    length: int,
    prompt: Callable[[int], str],
    answer: str,
    most: int,
    guess: int | None = None,
) -> tuple[Record, int]:
    """The longest prompt of at most ``length`` tokens with its answer, and how many words of the corpus."""
    if not haystack.writable(answer):
        raise ValueError(f"the tokenizer has no tokens for the answer {answer!r}")
    count = haystack.fit(length, lambda count: prompt(count) + answer, most, guess)
    return {"context": prompt(count), "answer": answer}, count
