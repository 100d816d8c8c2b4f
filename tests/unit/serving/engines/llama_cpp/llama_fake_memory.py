"""Slots without a model: each token's row is its own number, so that wrong reuse shows."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np

from serving.engines.llama_cpp.block_tree import Tokens
from serving.engines.llama_cpp.kv_state import Bytes, KvBlock, StateLayout, join_blocks, parse_state

_LAYERS = 2
LAYOUT = StateLayout(
    magic=0x67677371,
    streams=3,
    key_head=struct.pack("<iQ", 1, 4),
    value_head=struct.pack("<iQ", 1, 8),
    layers=_LAYERS,
    key_row=4,
    value_row=8,
)
# The same numbers, four channels of two bytes of each token apart.
TRANSPOSED = replace(LAYOUT, value_head=struct.pack("<iII", 1, 2, 4), transposed=True)
EMPTY: Tokens = np.zeros(0, np.int32)


def tokens(*values: int) -> Tokens:
    return np.array(values, np.int32)


def block(values: Tokens, layout: StateLayout = LAYOUT) -> KvBlock:
    keys = np.tile(values.astype("<i4").view(np.uint8), (_LAYERS, 1))
    row = values.astype("<i8").view("<i2").reshape(-1, layout.channels, 4 // layout.channels)
    channels = np.ascontiguousarray(row.swapaxes(0, 1)).view(np.uint8).reshape(layout.channels, -1)
    return KvBlock(layout, keys, np.tile(channels, (_LAYERS, 1, 1)))


class FakeMemory:
    """What SlotMemory asks for, over lists of tokens; `move_ms` a token pass for saving and restoring."""

    def __init__(
        self, slots: int, *, cuttable: bool = True, layout: StateLayout = LAYOUT, move_ms: float = 0.0
    ) -> None:
        self.move_ms = move_ms
        self.now_ms = 0.0
        self.rows: list[Tokens] = [EMPTY] * slots
        self.layout = layout
        self.cuttable = cuttable
        self.cut_fails = False
        self.restore_fails = False
        self.saves = 0

    def compute(self, sequence: int, start: int, new: Tokens) -> None:
        assert start == len(self.rows[sequence]), "positions must follow on what is there"
        self.rows[sequence] = np.concatenate([self.rows[sequence], new])

    def truncate(self, sequence: int, length: int) -> bool:
        if self.cut_fails and length > 0:
            self.rows[sequence] = EMPTY
            return False
        assert length <= len(self.rows[sequence]), "what is kept must be there"
        self.rows[sequence] = self.rows[sequence][:length]
        return True

    def save(self, sequence: int) -> Bytes:
        self.saves += 1
        self.now_ms += self.move_ms * len(self.rows[sequence])
        state = join_blocks([block(self.rows[sequence], self.layout)])
        return state if self.cuttable else state[:-1]

    def restore(self, sequence: int, state: Bytes) -> bool:
        if self.restore_fails:
            self.rows[sequence] = EMPTY
            return False
        saved = parse_state(state)
        self.now_ms += self.move_ms * saved.tokens
        self.rows[sequence] = np.frombuffer(saved.cut(0, saved.tokens).keys[1].tobytes(), "<i4")
        return True

    def copy(self, source: int, target: int) -> None:
        self.rows[target] = self.rows[source]
