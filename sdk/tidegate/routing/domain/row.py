"""A row of nodes in blocks: who changes one of thousands copies a block and the row of blocks, not the row.

A copy of references also counts each of them, which drags every node of the fleet through the processor's
cache, and out of it what the next decision needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice

from tidegate.routing.domain.node import NodeState

_SHIFT = 6
_BLOCK = 1 << _SHIFT
_MASK = _BLOCK - 1


class Row:
    """Immutable. All blocks but the last one are full."""

    __slots__ = ("_blocks", "_size")

    def __init__(self, nodes: Iterable[NodeState] = ()) -> None:
        left = iter(nodes)
        blocks = []
        while block := tuple(islice(left, _BLOCK)):
            blocks.append(block)
        self._blocks = tuple(blocks)
        self._size = sum(map(len, blocks))

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[NodeState]:
        return chain.from_iterable(self._blocks)

    def __getitem__(self, at: int) -> NodeState:
        return self._blocks[at >> _SHIFT][at & _MASK]

    def take(self, places: Sequence[int]) -> list[NodeState]:
        """Several at once, in the order of `places`."""
        blocks = self._blocks
        return [blocks[at >> _SHIFT][at & _MASK] for at in places]

    def changed(self, by_place: Mapping[int, NodeState]) -> Row:
        """The same nodes but these."""
        blocks = list(self._blocks)
        for at, node in by_place.items():
            block = list(blocks[at >> _SHIFT])
            block[at & _MASK] = node
            blocks[at >> _SHIFT] = tuple(block)
        row = Row.__new__(Row)
        row._blocks, row._size = tuple(blocks), self._size
        return row
