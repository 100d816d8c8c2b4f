"""The immutable view of all nodes that one decision is taken on, grouped so that none need walk it.

Nodes of one kind (same variants, same binding) fall at the same lasting filters, so those are decided once
per kind. What may take work now lies apart from what may not. A snapshot made from another one by
`with_changes` shares what did not change: its cost does not grow with the fleet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tidegate.routing.domain.node import Binding, Health, NodeState, Variant
from tidegate.routing.domain.row import Row


class Kind(NamedTuple):
    """What lasting filters look at, and whether the nodes save their batteries."""

    variants: tuple[Variant, ...]
    binding: Binding
    saving: bool = False


class Group(NamedTuple):
    """All nodes of a kind: those that may take work now, and the others."""

    kind: Kind
    ready: Row
    down: tuple[NodeState, ...]


class Holders:
    """Which nodes hold a prefix block, by its name. Changed by its owner between decisions only."""

    __slots__ = ("_of",)

    def __init__(self) -> None:
        # Most blocks are held once: a bare id spares a tuple for each.
        self._of: dict[bytes, str | tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self._of)

    def of(self, name: bytes) -> Sequence[str]:
        found = self._of.get(name, ())
        return (found,) if isinstance(found, str) else found

    def add(self, name: bytes, node_id: str) -> None:
        known = self.of(name)
        if node_id not in known:
            self._of[name] = (*known, node_id) if known else node_id

    def discard(self, name: bytes, node_id: str) -> None:
        left = tuple(known for known in self.of(name) if known != node_id)
        if not left:
            self._of.pop(name, None)
        else:
            self._of[name] = left[0] if len(left) == 1 else left

    def deepest(self, names: Sequence[bytes]) -> Sequence[str]:
        """Who holds most of a chain. Who holds a block holds those before it, but for the last evictions."""
        low, high = 0, len(names)
        deepest: Sequence[str] = ()
        while low < high:
            middle = (low + high) // 2
            holding = self.of(names[middle])
            if holding:
                low, deepest = middle + 1, holding
            else:
                high = middle
        return deepest


class Snapshot:
    """`nodes` in a stable order, `by_id` and `groups`; the last two are made when they are first read.

    `holders` is kept up by who makes the snapshots; without it it is read off the nodes. `departed` are the
    kinds of nodes that left a moment ago and may come back.
    """

    __slots__ = ("_by_id", "_given", "_groups", "_made", "_nodes", "_places", "departed")

    def __init__(
        self,
        nodes: Sequence[NodeState] = (),
        by_id: Mapping[str, NodeState] | None = None,
        holders: Holders | None = None,
        departed: Sequence[Kind] = (),
    ) -> None:
        self.departed = departed
        self._nodes: tuple[NodeState, ...] | None = tuple(nodes)
        self._by_id = by_id
        self._given, self._made = holders, holders
        self._groups: tuple[Group, ...] | None = None
        # Where each node lies: its group, and its index among the ready ones, or -1 - that among the others.
        self._places: dict[str, tuple[int, int]] = {}

    @property
    def nodes(self) -> tuple[NodeState, ...]:
        if self._nodes is None:
            groups = self.groups
            self._nodes = tuple(_at(groups, place) for place in self._places.values())
        return self._nodes

    @property
    def by_id(self) -> Mapping[str, NodeState]:
        if self._by_id is None:
            self._by_id = {node.node_id: node for node in self.nodes}
        return self._by_id

    @property
    def groups(self) -> tuple[Group, ...]:
        if self._groups is None:
            self._groups = self._grouped()
        return self._groups

    @property
    def holders(self) -> Holders:
        if self._made is None:
            self._made = Holders()
            for node in self.nodes:
                for name in node.prefix_blocks:
                    self._made.add(name, node.node_id)
        return self._made

    def get(self, node_id: str) -> NodeState | None:
        """One node, without making `by_id`."""
        groups = self.groups
        place = self._places.get(node_id)
        return None if place is None else _at(groups, place)

    def with_changes(self, changed: Sequence[NodeState]) -> Snapshot:
        """The same nodes, some of them changed. Raises KeyError for one that is not there."""
        groups, rows = self.groups, dict[int, dict[int, NodeState]]()
        same_blocks = True
        for node in changed:
            number, index = self._places[node.announcement.node_id]
            group = groups[number]
            if index < 0 or not is_up(node) or not is_kind(node, group.kind):
                return self._made_anew(changed)
            same_blocks = same_blocks and group.ready[index].prefix_blocks is node.prefix_blocks
            if number in rows:
                rows[number][index] = node
            else:
                rows[number] = {index: node}
        fresh = Snapshot(holders=self._given, departed=self.departed)
        fresh._nodes, fresh._places = None, self._places
        fresh_groups = list(groups)
        for number, row in rows.items():
            kind, ready, down = groups[number]
            fresh_groups[number] = Group(kind, ready.changed(row), down)
        fresh._groups = tuple(fresh_groups)
        if same_blocks:
            fresh._made = self._made
        return fresh

    def _made_anew(self, changed: Sequence[NodeState]) -> Snapshot:
        by_id = {**self.by_id, **{node.node_id: node for node in changed}}
        return Snapshot(tuple(by_id.values()), by_id, self._given, self.departed)

    def _grouped(self) -> tuple[Group, ...]:
        numbers: dict[Kind, int] = {}
        # Most nodes share the very objects: comparing whole models for each of thousands would take long.
        known: dict[tuple[int, int, bool], int] = {}
        found: list[tuple[Kind, list[NodeState], list[NodeState]]] = []
        places = self._places
        for node in self.nodes:
            announcement = node.announcement
            saving = is_saving(node)
            same = (id(announcement.variants), id(node.binding), saving)
            number = known.get(same)
            if number is None:
                kind = Kind(announcement.variants, node.binding, saving)
                number = known[same] = numbers.setdefault(kind, len(found))
                if number == len(found):
                    found.append((kind, [], []))
            _, ready, down = found[number]
            row = ready if is_up(node) else down
            places[announcement.node_id] = (number, len(row) if row is ready else -1 - len(row))
            row.append(node)
        return tuple(Group(kind, Row(ready), tuple(down)) for kind, ready, down in found)


def is_up(node: NodeState) -> bool:
    """Whether it may take work now."""
    load = node.load
    return node.linked_here and node.health is Health.READY and load.ready and not load.draining


def is_kind(node: NodeState, kind: Kind) -> bool:
    """Whether lasting filters see the node as they see its kind."""
    variants, binding = node.announcement.variants, node.binding
    return (
        (variants is kind.variants or variants == kind.variants)
        and (binding is kind.binding or binding == kind.binding)
        and is_saving(node) is kind.saving
    )


def is_saving(node: NodeState) -> bool:
    """Whether its battery is below the operator's floor, so that it is kept for what nobody else may do."""
    floor, power = node.binding.battery_floor, node.load.power
    if floor <= 0.0 or power is None or not power.on_battery:
        return False
    return power.battery_share is not None and power.battery_share < floor


def _at(groups: Sequence[Group], place: tuple[int, int]) -> NodeState:
    number, index = place
    return groups[number].ready[index] if index >= 0 else groups[number].down[-1 - index]
