"""A row of nodes in blocks: who changes one of thousands copies a block and the row of blocks, not the row.

A copy of references also counts each of them, which drags every node of the fleet through the processor's
cache, and out of it what the next decision needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice

from tidegate.routing.domain.node import NodeState

_SHIFT = 6
_BLOCK = 1 << _SHIFT
_MASK = _BLOCK - 1


class Row:
    """Immutable. All blocks but the last one are full."""

    __slots__ = ("_blocks", "size")

    def __init__(self, nodes: Iterable[NodeState] = ()) -> None:
        left = iter(nodes)
        blocks = []
        while block := tuple(islice(left, _BLOCK)):
            blocks.append(block)
        self._blocks = tuple(blocks)
        self.size = sum(map(len, blocks))

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[NodeState]:
        return chain.from_iterable(self._blocks)

    def __getitem__(self, at: int) -> NodeState:
        return self._blocks[at >> _SHIFT][at & _MASK]

    def spaced(self, start: int, step: int, count: int) -> list[NodeState]:
        """So many, from `start` on, each `step` further than the last one, round and round."""
        blocks, size = self._blocks, self.size
        places = range(start, start + step * count, step)
        return [blocks[(at := place % size) >> _SHIFT][at & _MASK] for place in places]

    def changed(self, by_place: Mapping[int, NodeState]) -> Row:
        """The same nodes but these."""
        blocks = list(self._blocks)
        for at, node in by_place.items():
            block = list(blocks[at >> _SHIFT])
            block[at & _MASK] = node
            blocks[at >> _SHIFT] = tuple(block)
        row = Row.__new__(Row)
        row._blocks, row.size = tuple(blocks), self.size
        return row
