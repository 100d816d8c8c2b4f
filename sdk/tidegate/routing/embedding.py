"""Embeddings as work: texts in, one vector each out, in the words of generation.

A request with `embed` runs like any other: its output indices count inputs, each chunk carries the vectors of
[first_index, first_index + count) as packed 32-bit floats, little-endian.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from tidegate.routing.domain import Accepted, Chunk, Finished, GenerateEvent, Restarted, Route, Usage

MAX_INPUTS = 128
"""Most texts of one request: their vectors travel in one message."""
MAX_VECTOR_BYTES = 4 * 16384
"""Of one vector; larger ones do not exist."""


def pack_texts(texts: Sequence[str]) -> bytes:
    """The input of a work: a JSON array. Raises ValueError for a text that is not Unicode."""
    return json.dumps(list(texts), ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def unpack_texts(data: bytes) -> tuple[str, ...]:
    """Raises ValueError for anything else than a JSON array of 1 to MAX_INPUTS texts."""
    texts = json.loads(data.decode("utf-8"))
    if not isinstance(texts, list) or not 1 <= len(texts) <= MAX_INPUTS:
        raise ValueError("no list of texts")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("an input is no text")
    return tuple(texts)


def pack_vector(values: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def unpack_vectors(data: bytes, count: int) -> list[tuple[float, ...]]:
    """`count` vectors of equal size. Raises ValueError when the bytes cannot be that."""
    size = len(data) // max(count, 1)
    if count < 1 or size == 0 or size % 4 or size * count != len(data):
        raise ValueError(f"{len(data)} bytes are no {count} vectors")
    layout = struct.Struct(f"<{size // 4}f")
    return [layout.unpack_from(data, size * number) for number in range(count)]


@dataclass(frozen=True, slots=True)
class Embedded:
    """One vector for each input, in order, of length 1."""

    vectors: tuple[tuple[float, ...], ...]
    usage: Usage
    route: Route | None = None


class Collector:
    """Puts the events of one request with `embed` together."""

    def __init__(self) -> None:
        self._vectors: list[tuple[float, ...]] = []
        self._route: Route | None = None

    def take(self, event: GenerateEvent) -> Embedded | None:
        """The whole once it is finished. Raises ValueError for vectors that cannot be read."""
        if isinstance(event, Accepted | Restarted):
            self._vectors, self._route = [], event.route
        elif isinstance(event, Chunk):
            self._vectors += unpack_vectors(event.vectors, event.count)
        elif isinstance(event, Finished):
            return Embedded(tuple(self._vectors), event.usage, self._route)
        return None
