"""Cheap features of a prompt: a few numbers, the distinct words, and hashed word n-grams.

Only the first and last 2,000 characters and at most 512 words are looked at, so the cost is bounded for any
prompt. Hashing is crc32 of lower-cased words, done here, so that the graph behind needs no text operators.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from zlib import crc32

import numpy as np
import numpy.typing as npt

from gateway.analysis import wordlists

HEAD_CHARS = 2_000
MAX_WORDS = 512
BUCKETS = 1 << 14
LONG_WORD = 8

Ids = npt.NDArray[np.int64]

DENSE_NAMES = (
    "log_length",
    "log_total_length",
    "turns",
    "log_words",
    "digit_share",
    "numbers",
    "distinct_numbers",
    "decimals",
    "large_numbers",
    "math",
    "code",
    "non_ascii_share",
    "capital_share",
    "lookup_words",
    "reasoning_words",
    "smalltalk",
    "negation",
    "constraints",
    "statements",
    "arithmetic_share",
    "arithmetic_words",
    "units",
    "sequence_words",
    "number_words",
    "pronouns",
    "function_words",
    "word_length",
    "long_words",
    "distinct_words",
    "lines",
    "sentences",
    "sentence_length",
    "longest_sentence",
    "questions",
    "options",
    "option_length",
    "option_spread",
    "asking_length",
    "asking_share",
    "blanks",
    "quotes",
    "money",
    "percent",
    "parentheses",
    "commas",
    "asks_how",
)
"""Names of the numbers, in the order of the graph's `dense` input; each lies in [0, 1]."""

_WORD = re.compile(r"\w+")
_MATH_SYMBOL = re.compile("[\u2200-\u22ff\u00b1\u00d7\u00f7\u2192]")
_SENTENCE_END = re.compile(r"[.!?]\s+")
# Options of a question with a choice: "A. ..." to "E) ...", each on a line of its own.
_OPTION = re.compile(r"^[A-E][.)] (.*)$", re.MULTILINE)
_FIRST_OPTION = re.compile(r"\nA[.)] ")
_DIGITS = b"0123456789"
_CAPITALS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MATH_MARKS = b"=+*^<>/%~"
_CODE_MARKS = b"{}[]();_`#&|\\"
_WORD_BYTES = b"abcdefghijklmnopqrstuvwxyz_" + _DIGITS
# Translation tables: what is not part of a word (of a number) becomes a space, capitals become small.
_ASCII_WORDS = bytes(
    code if code in _WORD_BYTES else code + 32 if code in _CAPITALS else 32 for code in range(256)
)
# No part of a word; the most frequent first.
_MARKS = (
    "\u00a0\u2019\u2026\u00b0\u2014\u2013\u2283\u2212\u2022\u201c\u201d\u2228\u00d7\u2192\u2200\u2261\u2203"
    "\u2018\u201a\u2190\u2032\u00b7\u2264\u2265\u00b1\u2227"
)
_NUMBERS = bytes(code if code in _DIGITS + b".," else 32 for code in range(256))
_NON_ASCII_BYTES = bytes(range(0x80, 0x100))


def capped(text: str) -> str:
    """The first and last 2,000 characters."""
    if len(text) <= 2 * HEAD_CHARS:
        return text
    return text[:HEAD_CHARS] + "\n" + text[-HEAD_CHARS:]


def words_of(text: str) -> list[str]:
    """Lower-cased words of a capped text: the first and last 256."""
    for mark in _MARKS:
        if text.isascii():
            break
        text = text.replace(mark, " ")
    # The same words either way; most prompts are ASCII but for marks, and a table is faster than the pattern.
    if text.isascii():
        words = text.encode("ascii").translate(_ASCII_WORDS).decode("ascii").split()
    else:
        words = _WORD.findall(text.lower())
    if len(words) > MAX_WORDS:
        return words[: MAX_WORDS // 2] + words[-MAX_WORDS // 2 :]
    return words


def buckets_of(words: Sequence[str]) -> tuple[Ids, Ids]:
    """Bucket ids of the distinct words, and of the distinct words and word pairs; neither is empty."""
    joined = " ".join(words).encode("utf-8", "surrogatepass")
    # Each but the first begins with the space that parts it from the one before, which no word holds.
    spaced = joined.replace(b" ", b"\0 ").split(b"\0")
    singles = list(map(crc32, joined.split(b" ")))
    # crc32 continued over the second word equals crc32 of both joined.
    pairs = map(crc32, spaced[1:], singles)
    ids = np.fromiter(chain(singles, pairs), np.int64) & (BUCKETS - 1)
    return _distinct(ids[: len(singles)]), _distinct(ids)


def _distinct(ids: Ids) -> Ids:
    """In ascending order. A table of flags is faster than sorting."""
    flags = np.zeros(BUCKETS, np.bool_)
    flags[ids] = True
    return np.flatnonzero(flags)


def dense(text: str, words: Sequence[str], *, total_chars: int, turns: int) -> list[float]:
    """The numbers of DENSE_NAMES for a capped text. `total_chars` counts the whole conversation."""
    values = [
        _log(len(text), 9.0),
        _log(total_chars, 16.0),
        _log(max(turns, 0), 4.0),
        *_mark_numbers(text, words),
        *_word_numbers(words),
        *_shape_numbers(text),
    ]
    values.append(float(any(word in ("how", "why") for word in words[:3])))
    return values


def _mark_numbers(text: str, words: Sequence[str]) -> list[float]:
    """log_words to capital_share."""
    per_char = 1.0 / max(len(text), 1)
    # bytes.translate deletes at C speed: counting a class is one length difference.
    data = text.encode("utf-8", "surrogatepass")
    wide = len(data) != len(text)
    non_ascii = len(text) - (len(data) - _count(data, _NON_ASCII_BYTES)) if wide else 0
    math_marks = _count(data, _MATH_MARKS) + (len(_MATH_SYMBOL.findall(text)) if wide else 0)
    numbers = [n for part in data.translate(_NUMBERS).split() if (n := part.strip(b".,"))]
    return [
        _log(len(words), 7.0),
        min(4.0 * _count(data, _DIGITS) * per_char, 1.0),
        _log(len(numbers), 5.0),
        _log(len(set(numbers)), 5.0),
        _log(sum(b"." in number for number in numbers), 4.0),
        _log(sum(len(number) >= 3 for number in numbers), 5.0),
        min(10.0 * math_marks * per_char, 1.0),
        min(10.0 * _count(data, _CODE_MARKS) * per_char, 1.0),
        non_ascii * per_char,
        min(4.0 * _count(data, _CAPITALS) * per_char, 1.0),
    ]


def _word_numbers(words: Sequence[str]) -> list[float]:
    """lookup_words to distinct_words."""
    count = max(len(words), 1)
    times = Counter(words)
    hits = [0] * len(wordlists.LISTS)
    for word in times.keys() & wordlists.MEMBERSHIP.keys():
        for index in wordlists.MEMBERSHIP[word]:
            hits[index] += times[word]
    lookup, reasoning, small, negation, constraints, statements, arithmetic, units, *rest = hits
    sequence, numbers, pronouns, function = rest
    lengths = list(map(len, words))

    def share(hit: int) -> float:
        """Presence that saturates: one hit in a short prompt says as much as several in a long one."""
        return min(hit / math.sqrt(count) / 2.0, 1.0)

    return [
        *map(share, (lookup, reasoning, small, negation, constraints, statements, arithmetic)),
        _log(arithmetic, 5.0),
        share(units),
        _log(sequence, 5.0),
        _log(numbers, 5.0),
        min(2.0 * pronouns / count, 1.0),
        function / count,
        min(sum(lengths) / count / 12.0, 1.0),
        sum(map(LONG_WORD.__lt__, lengths)) / count,
        len(times) / count,
    ]


def _shape_numbers(text: str) -> list[float]:
    """lines to commas: how the text is laid out. "Asking" is what comes before the first option."""
    first = _FIRST_OPTION.search(text)
    options = [len(option) for option in _OPTION.findall(text)] if first else []
    asking = text[: first.start()] if first else text
    lengths = [sentence.count(" ") + 1 for sentence in _SENTENCE_END.split(asking)]
    mean_option = sum(options) / max(len(options), 1)
    spread = math.sqrt(sum((o - mean_option) ** 2 for o in options) / max(len(options), 1))
    return [
        _log(text.count("\n"), 7.0),
        _log(len(lengths), 6.0),
        _log(sum(lengths) / len(lengths), 7.0),
        _log(max(lengths), 7.0),
        _log(text.count("?"), 5.0),
        min(len(options) / 5.0, 1.0),
        _log(mean_option, 7.0),
        _log(spread, 7.0),
        _log(len(asking), 9.0),
        len(asking) / max(len(text), 1),
        _log(text.count("_"), 6.0),
        _log(text.count('"') + text.count("\u201c") + text.count("'"), 6.0),
        _log(text.count("$"), 5.0),
        _log(text.count("%"), 5.0),
        _log(text.count("("), 6.0),
        min(10.0 * text.count(",") / max(len(text), 1), 1.0),
    ]


def _log(value: float, most: float) -> float:
    return min(math.log1p(value) / most, 1.0)


def _count(data: bytes, members: bytes) -> int:
    return len(data) - len(data.translate(None, members))
