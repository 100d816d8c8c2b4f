"""Parked prefixes: a tree over blocks of tokens per namespace, each node with its block's keys and values.

Sequences with the same beginning share its nodes. Only leaves are given up, the one first whose loss costs
least: greedy dual size with frequency, so each node is worth the computing time that its hits have saved per
byte, and everything ages as others are given up. Pure: what a block is made of is the caller's affair.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from serving.engines.llama_cpp.held_names import HeldNames

Tokens = npt.NDArray[np.int32]
# (name, how many leading tokens it stands for), ascending.
NamedPositions = Sequence[tuple[bytes, int]]

_MAX_NAMES_PER_BLOCK = 8
_STALE_SHARE = 4
_PINNED_SHARE = 2
# Before the first block nobody knows how large they are: there is room for all.
_UNKNOWN_TOKENS = 1 << 30


class Block(Protocol):
    """Keys and values of one block."""

    @property
    def nbytes(self) -> int: ...


B = TypeVar("B", bound=Block)


@dataclass(slots=True, eq=False)
class Node(Generic[B]):
    """One block below its parent; `key` is the block's tokens as bytes, a root's its namespace."""

    key: bytes
    parent: Node[B] | None
    block: B | None
    nbytes: int = 0
    hits: int = 1
    worth: float = 0.0
    names: tuple[bytes, ...] = ()
    children: dict[bytes, Node[B]] = field(default_factory=dict)
    pinned: bool = False
    public: bool = False


class BlockTree(Generic[B]):
    """At most `budget_bytes` of blocks of `block_tokens` tokens. Namespaces never see each other's nodes."""

    def __init__(self, budget_bytes: int, block_tokens: int, names: HeldNames) -> None:
        self.budget_bytes = budget_bytes
        self.block_tokens = block_tokens
        self._names = names
        self._roots: dict[str, Node[B]] = {}
        self._leaves: list[tuple[float, int, Node[B]]] = []
        self._pushed = 0
        self._count = 0
        self._age = 0.0
        self.used_bytes = self.pinned_bytes = 0
        self.given_up = 0

    @property
    def room_tokens(self) -> int:
        """How many more tokens may be parked before anything is given up, blocks being as large as so far."""
        if not self._count:
            return _UNKNOWN_TOKENS
        free_bytes = max(self.budget_bytes - self.used_bytes, 0)
        return free_bytes * self._count // max(self.used_bytes, 1) * self.block_tokens

    def match(self, namespace: str, tokens: Tokens) -> list[Node[B]]:
        """The parked blocks that `tokens` begin with, compared token by token, first block first."""
        node = self._roots.get(namespace)
        path: list[Node[B]] = []
        for key in self._keys(tokens):
            node = node.children.get(key) if node is not None else None
            if node is None:
                break
            path.append(node)
        return path

    def hit(self, path: Sequence[Node[B]], saved_ms_per_block: float) -> None:
        """The blocks were used again instead of being computed."""
        for node in path:
            node.hits += 1
            self._revalue(node, saved_ms_per_block)

    def park(
        self,
        namespace: str,
        tokens: Tokens,
        names: NamedPositions,
        make: Callable[[int, int], B],
        cost_ms_per_block: float,
        *,
        public_tokens: int = 0,
    ) -> int:
        """Keeps the whole blocks of `tokens`; how many leading tokens are parked now.

        `make` gives the block of the tokens from one position up to another and is asked only for those that
        are missing. The first `public_tokens` are public data.
        """
        root = self._roots.setdefault(namespace, Node(namespace.encode(), None, None))
        node = root
        end = 0
        path = {id(root)}
        for key in self._keys(tokens):
            start, end = end, end + self.block_tokens
            child = node.children.get(key)
            if child is None:
                block = make(start, end)
                if not self._make_room(block.nbytes, path):
                    end = start
                    break
                child = node.children[key] = Node(key, node, block, block.nbytes)
                self.used_bytes += block.nbytes
                self._count += 1
            child.public = child.public or end <= public_tokens
            self._revalue(child, cost_ms_per_block)
            path.add(id(child))
            self._name(child, [name for name, position in names if start < position <= end])
            node = child
        if root.children:
            # Giving up its last block meanwhile may have taken it out.
            self._roots[namespace] = root
        else:
            self._roots.pop(namespace, None)
        return end

    def pin(self, namespace: str, tokens: Tokens) -> int:
        """Keeps the parked blocks that `tokens` begin with for good; how many tokens that are.

        0 when pinned blocks would take more than half of all there may be.
        """
        path = self.match(namespace, tokens)
        fresh = sum(node.nbytes for node in path if not node.pinned)
        if self.pinned_bytes + fresh > self.budget_bytes // _PINNED_SHARE:
            return 0
        self.pinned_bytes += fresh
        for node in path:
            node.pinned = True
        return len(path) * self.block_tokens

    def public(self) -> list[Node[B]]:
        """Blocks whose tokens are public data: all that public work has begun with."""
        found: list[Node[B]] = []
        waiting = list(self._roots.values())
        while waiting:
            children = [node for node in waiting.pop().children.values() if node.public]
            found += children
            waiting += children
        return found

    def clear(self) -> None:
        """Nothing is parked any more."""
        for root in self._roots.values():
            waiting = list(root.children.values())
            while waiting:
                node = waiting.pop()
                self._names.replace(node.names, ())
                waiting += node.children.values()
        self._roots.clear()
        self._leaves.clear()
        self.used_bytes = self.pinned_bytes = self._count = 0

    def _keys(self, tokens: Tokens) -> list[bytes]:
        size = self.block_tokens
        data, step = tokens.tobytes(), size * tokens.itemsize
        return [data[at : at + step] for at in range(0, len(tokens) // size * step, step)]

    def _name(self, node: Node[B], names: list[bytes]) -> None:
        """A block keeps the latest names: they change when a tenant's key rotates."""
        fresh = [name for name in names if name not in node.names]
        if fresh:
            kept = (*node.names, *fresh)[-_MAX_NAMES_PER_BLOCK:]
            self._names.replace(node.names, kept)
            node.names = kept

    def _revalue(self, node: Node[B], saved_ms: float) -> None:
        node.worth = self._age + node.hits * saved_ms / max(node.nbytes, 1)
        self._push(node)

    def _push(self, node: Node[B]) -> None:
        self._pushed += 1
        heapq.heappush(self._leaves, (node.worth, self._pushed, node))
        if len(self._leaves) > _STALE_SHARE * self._count + 64:
            self._leaves = [e for e in self._leaves if e[2].parent is not None and e[0] == e[2].worth]
            heapq.heapify(self._leaves)

    def _make_room(self, nbytes: int, path: set[int]) -> bool:
        """Gives up leaves that are not on `path`; False when that is not enough."""
        kept: list[tuple[float, int, Node[B]]] = []
        while self.used_bytes + nbytes > self.budget_bytes and self._leaves:
            worth, number, node = heapq.heappop(self._leaves)
            if node.parent is None or worth != node.worth or node.children or node.pinned:
                continue  # gone, worth more by now, pinned, or no leaf: it comes back when it is one
            if id(node) in path:
                kept.append((worth, number, node))
                continue
            self._give_up(node)
        for entry in kept:
            heapq.heappush(self._leaves, entry)
        return self.used_bytes + nbytes <= self.budget_bytes

    def _give_up(self, node: Node[B]) -> None:
        parent = node.parent
        assert parent is not None
        self._age = max(self._age, node.worth)
        del parent.children[node.key]
        self._names.replace(node.names, ())
        self.used_bytes -= node.nbytes
        self._count -= 1
        self.given_up += 1
        node.parent, node.block = None, None
        if parent.children:
            return
        if parent.parent is not None:
            self._push(parent)
        else:
            self._roots.pop(parent.key.decode(), None)
