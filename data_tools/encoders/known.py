"""Which characters the libraries agree on: their Unicode tables are of different ages."""

import unicodedata
from functools import cache

import numpy as np

NEWEST_TABLES = (16, 0)
"""Of Unicode, those that both `tokenizers` and tiktoken have at least; gigatoken's are newer."""


def all_known(text: str) -> bool:
    """Whether every character is one that all of the tables have: a letter in one is then a letter in all,
    as Unicode changes no character later on."""
    return text.isascii() or bool(_known()[np.frombuffer(text.encode("utf-32-le"), "<u4")].all())


@cache
def _known() -> np.ndarray:
    """Of each code point, whether it was assigned in Python's tables, or in old ones if Python's are newer
    than what the libraries have. Beyond these ranges are no letters, and what is rare is the reference's."""
    version = tuple(map(int, unicodedata.unidata_version.split(".")[:2]))
    category = unicodedata.category if version <= NEWEST_TABLES else unicodedata.ucd_3_2_0.category
    known = np.zeros(0x110000, bool)
    for points in (range(0x34000), range(0xE0000, 0xE0200)):
        known[points.start : points.stop] = [category(chr(point)) != "Cn" for point in points]
    return known


def is_nfc(text: str) -> bool:
    """Whether NFC leaves a text of known characters as it is, in tables of any age.

    What Python finds normalized is so in older tables too: there, newer characters neither combine nor move,
    and what is said of the older ones has not changed.
    """
    return text.isascii() or unicodedata.is_normalized("NFC", text)
