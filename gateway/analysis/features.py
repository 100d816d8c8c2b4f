"""Cheap features of a prompt: a few numbers and hashed word n-grams.

Only the first and last 2,000 characters and at most 512 words are looked at, so the cost is bounded for any
prompt. Hashing is crc32 of lower-cased words, done here, so that the graph behind needs no text operators.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from zlib import crc32

HEAD_CHARS = 2_000
MAX_WORDS = 512
BUCKETS = 1 << 14

DENSE_NAMES = (
    "log_length",
    "log_total_length",
    "digit_share",
    "numbers",
    "math",
    "code",
    "non_ascii_share",
    "lookup_words",
    "reasoning_words",
    "smalltalk",
    "word_length",
    "lines",
    "turns",
    "constraints",
)
"""Names of the numbers, in the order of the graph's `dense` input; each lies in [0, 1]."""

_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"[0-9]+")
_MATH_SYMBOL = re.compile("[\u2200-\u22ff\u00b1\u00d7\u00f7\u2192]")
_DIGITS = b"0123456789"
_MATH_MARKS = b"=+*^<>/%"
_CODE_MARKS = b"{}[]();_`#&|\\"
_NON_ASCII_BYTES = bytes(range(0x80, 0x100))
_LOOKUP = frozenset(
    [
        "what",
        "who",
        "when",
        "where",
        "which",
        "name",
        "list",
        "define",
        "capital",
        "spell",
        "translate",
        "synonym",
    ]
)
_REASONING = frozenset(
    [
        "why",
        "how",
        "prove",
        "proof",
        "derive",
        "explain",
        "compare",
        "contrast",
        "analyze",
        "analyse",
        "evaluate",
        "design",
        "optimize",
        "optimise",
        "implement",
        "debug",
        "refactor",
        "algorithm",
        "complexity",
        "theorem",
        "integral",
        "derivative",
        "probability",
        "calculate",
        "compute",
        "solve",
        "estimate",
        "deduce",
        "infer",
        "justify",
        "critique",
        "tradeoff",
        "tradeoffs",
        "logic",
        "puzzle",
        "step",
        "steps",
    ]
)
_SMALLTALK = frozenset(
    [
        "hi",
        "hello",
        "hey",
        "thanks",
        "thank",
        "ok",
        "okay",
        "yes",
        "no",
        "bye",
        "please",
        "joke",
        "morning",
        "evening",
    ]
)
_CONSTRAINTS = frozenset(
    [
        "must",
        "should",
        "exactly",
        "only",
        "without",
        "except",
        "unless",
        "each",
        "every",
        "per",
        "total",
        "if",
        "then",
        "not",
        "least",
        "most",
        "both",
    ]
)


def capped(text: str) -> str:
    """The first and last 2,000 characters."""
    if len(text) <= 2 * HEAD_CHARS:
        return text
    return text[:HEAD_CHARS] + "\n" + text[-HEAD_CHARS:]


def words_of(text: str) -> list[str]:
    """Lower-cased words of a capped text: the first and last 256."""
    words = _WORD.findall(text.lower())
    if len(words) > MAX_WORDS:
        return words[: MAX_WORDS // 2] + words[-MAX_WORDS // 2 :]
    return words


def ngram_ids(words: Sequence[str]) -> list[int]:
    """Bucket ids of the distinct words and word pairs; never empty (bucket of the empty text)."""
    encoded = [word.encode("utf-8", "surrogatepass") for word in words]
    ids = {crc32(word) % BUCKETS for word in encoded}
    # crc32 continued over the second word equals crc32 of both joined.
    ids.update([crc32(right, crc32(left + b" ")) % BUCKETS for left, right in pairwise(encoded)])
    return sorted(ids) or [crc32(b"") % BUCKETS]


def dense(text: str, words: Sequence[str], *, total_chars: int, turns: int) -> list[float]:
    """The numbers of DENSE_NAMES for a capped text. `total_chars` counts the whole conversation."""
    length = len(text)
    per_char = 1.0 / max(length, 1)
    count = max(len(words), 1)
    # bytes.translate deletes at C speed: counting a class is one length difference.
    data = text.encode("utf-8", "surrogatepass")
    digits = _count(data, _DIGITS)
    math_marks = _count(data, _MATH_MARKS) + len(_MATH_SYMBOL.findall(text))
    code_marks = _count(data, _CODE_MARKS)
    non_ascii = 0 if len(data) == length else length - (len(data) - _count(data, _NON_ASCII_BYTES))
    return [
        min(math.log1p(length) / 9.0, 1.0),
        min(math.log1p(total_chars) / 16.0, 1.0),
        min(4.0 * digits * per_char, 1.0),
        min(math.log1p(len(_NUMBER.findall(text))) / 4.0, 1.0),
        min(10.0 * math_marks * per_char, 1.0),
        min(10.0 * code_marks * per_char, 1.0),
        non_ascii * per_char,
        _share(words, _LOOKUP, count),
        _share(words, _REASONING, count),
        _share(words, _SMALLTALK, count),
        min(sum(map(len, words)) / count / 10.0, 1.0),
        min(math.log1p(text.count("\n")) / 5.0, 1.0),
        min(math.log1p(max(turns, 0)) / 4.0, 1.0),
        min(math.log1p(sum(map(_CONSTRAINTS.__contains__, words))) / 4.0, 1.0),
    ]


def _share(words: Sequence[str], wanted: frozenset[str], count: int) -> float:
    """Presence that saturates: one hit in a short prompt says as much as several in a long one."""
    return min(sum(map(wanted.__contains__, words)) / math.sqrt(count), 1.0)


def _count(data: bytes, members: bytes) -> int:
    return len(data) - len(data.translate(None, members))
