"""Cuts the saved state of one sequence into blocks of tokens, and joins blocks into a state again. Pure.

llama.cpp saves a sequence as one run of bytes: a head, the cells' positions, then per layer the rows of the
keys, one a token, then per layer the values: one row a token, too, or, without flash attention, transposed,
one row a channel. So the part of any token range can be taken out, shared between sequences with the same
beginning, and put together again, byte for byte.

Layout (little endian): u32 magic, i32 sequence, u32 streams; per stream u32 cells and, if there are any,
cells x (i32 position, u32 1, i32 sequence), u32 transposed, u32 layers, layers x (i32 type, u64 row bytes,
rows), the same for the values; if they are transposed layers x (i32 type, u32 number bytes, u32 channels,
channels x numbers). Models that keep more than that (two caches, recurrent state) do not parse, and their
sequences cannot be cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

_PART_HEAD = 12
_CELL_BYTES = 12


class NotCuttable(Exception):
    """The state is not laid out as described above."""


@dataclass(frozen=True, slots=True)
class StateLayout:
    """What is equal in all states of one context."""

    magic: int
    streams: int
    key_head: bytes
    value_head: bytes
    layers: int
    key_row: int
    value_row: int
    transposed: bool = False

    @property
    def token_bytes(self) -> int:
        return self.layers * (self.key_row + self.value_row)

    @property
    def channels(self) -> int:
        """Rows that the values of a layer lie in, each with a part of every token."""
        return int.from_bytes(self.value_head[8:], "little") if self.transposed else 1


@dataclass(frozen=True, slots=True)
class KvBlock:
    """Keys (layers, tokens x row bytes) and values (layers, channels, bytes) of consecutive tokens."""

    layout: StateLayout
    keys: Bytes
    values: Bytes

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


def join_blocks(blocks: Sequence[KvBlock]) -> Bytes:
    """The state of a sequence that consists of these blocks, at least one, from position 0."""
    layout = blocks[0].layout
    count = sum(block.keys.shape[1] for block in blocks) // layout.key_row
    positions = np.zeros((count, 3), "<i4")
    positions[:, 0] = np.arange(count)
    positions[:, 1] = 1
    # The first stream carries the cells; the reader puts them into the stream of its own sequence.
    head = np.array([layout.magic, 0, layout.streams, count], "<u4").tobytes() + positions.tobytes()
    head += np.array([layout.transposed, layout.layers], "<u4").tobytes()
    key_part, value_part = _PART_HEAD + count * layout.key_row, _PART_HEAD + count * layout.value_row
    middle = len(head) + layout.layers * key_part
    end = middle + layout.layers * value_part
    state = np.empty(end + 4 * (layout.streams - 1), np.uint8)
    state[: len(head)] = np.frombuffer(head, np.uint8)
    state[end:] = 0
    keys = state[len(head) : middle].reshape(layout.layers, key_part)
    values = state[middle:end].reshape(layout.layers, value_part)
    keys[:, :_PART_HEAD] = np.frombuffer(layout.key_head, np.uint8)
    values[:, :_PART_HEAD] = np.frombuffer(layout.value_head, np.uint8)
    np.concatenate([block.keys for block in blocks], axis=1, out=keys[:, _PART_HEAD:])
    np.concatenate([block.values for block in blocks], axis=2, out=_rows(values, layout))
    return state


def _rows(values: Bytes, layout: StateLayout) -> Bytes:
    """(layers, head and values) seen as (layers, channels, bytes)."""
    return values[:, _PART_HEAD:].reshape(layout.layers, layout.channels, -1)


@dataclass(frozen=True, slots=True)
class SavedState:
    """One sequence's state, readable by token range. `keys` and `values` are views without heads."""

    layout: StateLayout
    tokens: int
    keys: Bytes
    values: Bytes

    def cut(self, start: int, end: int) -> KvBlock:
        """A copy of the tokens from `start` up to `end`."""
        row = self.layout.key_row
        part = self.layout.value_row // self.layout.channels
        keys = self.keys[:, start * row : end * row].copy()
        values = self.values[:, :, start * part : end * part].copy()
        return KvBlock(self.layout, keys, values)


def parse_state(state: Bytes) -> SavedState:
    """Raises NotCuttable."""
    reader = _Reader(state)
    magic, _, streams = reader.words(3)
    saved: SavedState | None = None
    for _ in range(streams):
        (count,) = reader.words(1)
        if count == 0:
            continue
        if saved is not None:
            raise NotCuttable("cells in two streams")
        cells = reader.take(count * _CELL_BYTES).view("<i4").reshape(count, 3)
        if (cells[:, 1] != 1).any() or (cells[:, 0] != np.arange(count)).any():
            raise NotCuttable("cells out of order")
        transposed, layers = reader.words(2)
        if transposed > 1 or layers == 0:
            raise NotCuttable("no layers")
        keys, key_row = reader.part(layers, count, transposed=False)
        values, value_row = reader.part(layers, count, transposed=bool(transposed))
        heads = keys[0, :_PART_HEAD].tobytes(), values[0, :_PART_HEAD].tobytes()
        layout = StateLayout(magic, streams, *heads, layers, key_row, value_row, bool(transposed))
        saved = SavedState(layout, count, keys[:, _PART_HEAD:], _rows(values, layout))
    if saved is None or not reader.at_end:
        raise NotCuttable("more than one plain cache")
    return saved


class _Reader:
    def __init__(self, state: Bytes) -> None:
        self._state = state
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self._state)

    def take(self, count: int) -> Bytes:
        end = self._at + count
        if end > len(self._state):
            raise NotCuttable("the state is shorter than it says")
        part = self._state[self._at : end]
        self._at = end
        return part

    def words(self, count: int) -> tuple[int, ...]:
        return tuple(int(word) for word in np.frombuffer(self.take(4 * count).tobytes(), "<u4"))

    def part(self, layers: int, count: int, *, transposed: bool) -> tuple[Bytes, int]:
        """(layers, head and numbers) and a token's bytes of one layer."""
        head = self.take(_PART_HEAD).tobytes()
        self._at -= _PART_HEAD
        low, high = int.from_bytes(head[4:8], "little"), int.from_bytes(head[8:], "little")
        row = low * high if transposed else low + (high << 32)
        if not 0 < row <= len(self._state):
            raise NotCuttable("a row has no size")
        size = _PART_HEAD + count * row
        part = self.take(layers * size).reshape(layers, size)
        if (part[:, :_PART_HEAD] != part[0, :_PART_HEAD]).any():
            raise NotCuttable("layers differ")
        return part, row
