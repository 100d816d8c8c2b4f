"""The fleet as this replica knows it. One writer: the event loop, through these methods.

Liveness is judged by this replica's own clock: SUSPECT after two missed heartbeats, and the link is given up
after `lost_after_s`. Readiness is the node's word. Progress is the engine's: work running without a step for
`stalled_after_s` is STALLED. Work sent counts until the node acknowledges its sequence number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from gateway.state.records import NodeRecord
from tidegate.routing.domain import (
    Announcement,
    AttemptKey,
    Binding,
    CacheDelta,
    Health,
    InFlight,
    NodeLoad,
    NodeState,
    Snapshot,
    Work,
)
from tidegate.routing.prefix import names_digest

RTT_WEIGHT = 0.25
BYTES_PER_TOKEN = 4
MAX_PREFIX_NAMES = 65_536


@dataclass(slots=True)
class _Node:
    announcement: Announcement
    binding: Binding
    link_epoch: int
    last_heard_s: float
    load: NodeLoad = field(default_factory=lambda: NodeLoad(ready=False))
    rtt_ms: float = 1.0
    rtt_known: bool = False
    sent: dict[AttemptKey, tuple[int, int, int]] = field(default_factory=dict)  # work_seq, prefill, decode
    prefix: set[bytes] = field(default_factory=set)
    prefix_view: frozenset[bytes] = frozenset()
    stalled_until_s: float = 0.0
    state: NodeState | None = None


class Fleet:
    """`clock` returns seconds; times in the constructor are seconds."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        suspect_after_s: float = 4.5,
        lost_after_s: float = 5.5,
        stalled_after_s: float = 10.0,
    ) -> None:
        self._clock = clock
        self._suspect_after_s = suspect_after_s
        self.lost_after_s = lost_after_s
        self._stalled_after_s = stalled_after_s
        self._nodes: dict[str, _Node] = {}
        self._remote: dict[str, NodeState] = {}
        self._snapshot: Snapshot | None = None
        self.version = 0

    # --- written by the links -----------------------------------------------------------------------

    def register(self, announcement: Announcement, binding: Binding, link_epoch: int) -> None:
        self._nodes[announcement.node_id] = _Node(announcement, binding, link_epoch, self._clock())
        self._changed(announcement.node_id)

    def remove(self, node_id: str, link_epoch: int) -> None:
        """The link is gone; a newer epoch's node stays."""
        node = self._nodes.get(node_id)
        if node is not None and node.link_epoch == link_epoch:
            del self._nodes[node_id]
            self._changed(None)

    def heard(self, node_id: str) -> None:
        """Any message counts as a sign of life."""
        node = self._nodes.get(node_id)
        if node is not None:
            node.last_heard_s = self._clock()

    def heartbeat(self, node_id: str, load: NodeLoad) -> None:
        node = self._nodes.get(node_id)
        if node is None:
            return
        node.load = load
        acked = load.last_work_seq
        node.sent = {key: sent for key, sent in node.sent.items() if sent[0] > acked}
        self._changed(node_id)

    def rtt(self, node_id: str, sample_ms: float) -> None:
        """Smoothed as in RFC 6298, without the variance."""
        node = self._nodes.get(node_id)
        if node is None:
            return
        node.rtt_ms = node.rtt_ms + RTT_WEIGHT * (sample_ms - node.rtt_ms) if node.rtt_known else sample_ms
        node.rtt_known = True
        self._changed(node_id)

    def cache_report(self, node_id: str, delta: CacheDelta) -> bool:
        """Takes a report in; False when the digest says that the index went wrong."""
        node = self._nodes.get(node_id)
        if node is None:
            return True
        if delta.full:
            node.prefix = set(delta.held[:MAX_PREFIX_NAMES])
        else:
            node.prefix.difference_update(delta.evicted)
            node.prefix.update(delta.held)
        node.prefix_view = frozenset(node.prefix)
        self._changed(node_id)
        return names_digest(node.prefix) == delta.digest

    def sent(self, node_id: str, work: Work) -> None:
        node = self._nodes.get(node_id)
        if node is not None:
            tokens = max(1, len(work.input) // BYTES_PER_TOKEN)
            node.sent[work.key] = (work.work_seq, tokens, work.max_tokens)
            self._changed(node_id)

    def ended(self, node_id: str, key: AttemptKey) -> None:
        node = self._nodes.get(node_id)
        if node is not None and node.sent.pop(key, None) is not None:
            self._changed(node_id)

    def mark_stalled(self, node_id: str, for_s: float) -> None:
        """An attempt there stood still: no new work until the time is over."""
        node = self._nodes.get(node_id)
        if node is not None:
            node.stalled_until_s = self._clock() + for_s
            self._changed(node_id)

    # --- written by the sync ------------------------------------------------------------------------

    def learn_remote(self, records: Iterable[NodeRecord], replica_id: str) -> None:
        """Nodes that only other replicas are linked to."""
        self._remote = {r.state.node_id: r.state for r in records if r.replica_id != replica_id}
        self._changed(None)

    # --- read ---------------------------------------------------------------------------------------

    def silent_nodes(self) -> tuple[tuple[str, float], ...]:
        """Linked nodes not heard from for longer than lost_after_s, with their silence in seconds."""
        now = self._clock()
        return tuple(
            (node_id, now - node.last_heard_s)
            for node_id, node in self._nodes.items()
            if now - node.last_heard_s > self.lost_after_s
        )

    def silent_ms(self, node_id: str) -> float:
        node = self._nodes.get(node_id)
        return 0.0 if node is None else (self._clock() - node.last_heard_s) * 1000

    def refresh(self) -> None:
        """Health also changes by time alone; call it a few times a second."""
        for node_id, node in self._nodes.items():
            if node.state is not None and node.state.health is not self._health(node):
                self._changed(node_id)

    def linked(self) -> tuple[NodeState, ...]:
        return tuple(n for n in self.snapshot().nodes if n.linked_here)

    def snapshot(self) -> Snapshot:
        if self._snapshot is None:
            states = {node_id: self._state(node) for node_id, node in self._nodes.items()}
            for node_id, remote in self._remote.items():
                states.setdefault(node_id, remote)
            self._snapshot = Snapshot(nodes=tuple(states.values()), by_id=states)
        return self._snapshot

    def _changed(self, node_id: str | None) -> None:
        if node_id is not None and node_id in self._nodes:
            self._nodes[node_id].state = None
        self._snapshot = None
        self.version += 1

    def _state(self, node: _Node) -> NodeState:
        if node.state is None:
            sent = node.sent.values()
            node.state = NodeState(
                announcement=node.announcement,
                binding=node.binding,
                load=node.load,
                health=self._health(node),
                rtt_ms=node.rtt_ms,
                in_flight=InFlight(
                    requests=len(sent),
                    prefill_tokens=sum(s[1] for s in sent),
                    decode_tokens=sum(s[2] for s in sent),
                ),
                prefix_blocks=node.prefix_view,
            )
        return node.state

    def _health(self, node: _Node) -> Health:
        now = self._clock()
        if now - node.last_heard_s > self._suspect_after_s:
            return Health.SUSPECT
        if node.load.draining:
            return Health.DRAINING
        if not node.load.ready or not node.rtt_known:
            return Health.NOT_READY
        stalled = node.load.running > 0 and node.load.progress_age_ms > self._stalled_after_s * 1000
        return Health.STALLED if stalled or now < node.stalled_until_s else Health.READY
