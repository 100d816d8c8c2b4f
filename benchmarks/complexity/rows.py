"""Labelled prompts: read from CSV or JSON lines, and turned into what the graph sees."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gateway.analysis.features import Ids, buckets_of, capped, dense, words_of

Floats = npt.NDArray[np.float64]
# Other names that outcome tables use for the same columns.
NAMES = {
    "prompt": ("prompt",),
    "weak": ("weak", "weak_correct"),
    "strong": ("strong", "strong_correct"),
    "group": ("group", "subject", "task"),
}


class BadRows(Exception):
    """The labels cannot be used; the message says which file and row, and why."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """One prompt with how good the small and the large model's answers were, in [0, 1]."""

    prompt: str
    weak: float
    strong: float
    group: str = ""


def read(path: Path) -> list[Labelled]:
    """All rows of a .csv, or of a file with one JSON object a line. Raises BadRows."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            found = csv.DictReader(file) if path.suffix == ".csv" else _objects(path, file)
            rows = [_row(path, number, values) for number, values in enumerate(found, 1)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadRows(f"{path}: {error}") from error
    if not rows:
        raise BadRows(f"{path}: no row")
    return rows


def _objects(path: Path, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            if not isinstance(value, dict):
                raise BadRows(f"{path}, line {number}: not a JSON object")
            yield value


def _row(path: Path, number: int, values: dict[str, Any]) -> Labelled:
    found = {key: next((values[n] for n in names if n in values), None) for key, names in NAMES.items()}
    for key in ("prompt", "weak", "strong"):
        if found[key] is None:
            raise BadRows(f"{path}, row {number}: no column {key!r}")
    try:
        weak, strong = float(found["weak"]), float(found["strong"])
    except (TypeError, ValueError):
        raise BadRows(f"{path}, row {number}: weak and strong must be numbers") from None
    if not (0.0 <= weak <= 1.0 and 0.0 <= strong <= 1.0):
        raise BadRows(f"{path}, row {number}: weak and strong must lie in [0, 1]")
    return Labelled(str(found["prompt"]), weak, strong, str(found["group"] or ""))


@dataclass(frozen=True, slots=True)
class Features:
    """What the graph reads of one prompt."""

    words: Ids
    ids: Ids
    dense: tuple[float, ...]


@lru_cache(maxsize=50_000)
def features(prompt: str) -> Features:
    """The same functions that the gateway runs."""
    text = capped(prompt)
    words = words_of(text)
    single, ids = buckets_of(words)
    return Features(single, ids, tuple(dense(text, words, total_chars=len(prompt), turns=1)))


@dataclass(frozen=True, slots=True)
class Matrix:
    """Features of many prompts. Ragged ids are kept flat, with where each row starts."""

    dense: Floats
    vectors: Floats
    ids: Ids
    starts: Ids
    scale: Floats

    def __len__(self) -> int:
        return len(self.dense)

    def ngrams_times(self, weights: Floats) -> Floats:
        """N @ weights, where row i of N has scale[i] at its ids."""
        sums: Floats = np.add.reduceat(weights[self.ids], self.starts) * self.scale
        return sums

    def times_ngrams(self, values: Floats, buckets: int) -> Floats:
        """N.T @ values."""
        spread = np.repeat(values * self.scale, np.diff(self.starts, append=len(self.ids)))
        return np.bincount(self.ids, weights=spread, minlength=buckets)

    def take(self, rows: Ids) -> Matrix:
        lengths = np.diff(self.starts, append=len(self.ids))[rows]
        parts = [self.ids[self.starts[r] : self.starts[r] + n] for r, n in zip(rows, lengths, strict=True)]
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        return Matrix(self.dense[rows], self.vectors[rows], np.concatenate(parts), starts, self.scale[rows])


def matrix(prompts: Sequence[str], table: npt.NDArray[np.int8]) -> Matrix:
    """`table`: a vector per word bucket, whose sum over a prompt's words is brought to length 1."""
    found = [features(p) for p in prompts]
    lengths = np.array([len(f.ids) for f in found])
    sums = np.array([table[f.words].sum(axis=0, dtype=np.float64) for f in found])
    return Matrix(
        dense=np.array([f.dense for f in found]),
        vectors=sums / (np.linalg.norm(sums, axis=1, keepdims=True) + 1.0),
        ids=np.concatenate([f.ids for f in found]),
        starts=np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64),
        scale=1.0 / np.sqrt(lengths),
    )
