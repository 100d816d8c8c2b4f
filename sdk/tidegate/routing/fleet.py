"""The fleet as this replica knows it. One writer: the event loop, through these methods.

Liveness is judged by this replica's own clock: SUSPECT after two missed heartbeats, and the link is given up
after `lost_after_s`. Readiness is the node's word. Progress is the engine's: work running without a step for
`stalled_after_s` is STALLED. Who left is remembered for `departed_for_s`: what only it could answer is then
refused as something that may pass. Work sent counts until the node acknowledges its sequence number.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from tidegate.routing.domain import (
    Announcement,
    AttemptKey,
    Binding,
    CacheDelta,
    Health,
    Holders,
    InFlight,
    Kind,
    NodeLoad,
    NodeState,
    Snapshot,
    Variant,
    Work,
)
from tidegate.routing.domain.node import slots_now
from tidegate.routing.prefix import BLOCK_BYTES
from tidegate.routing.prefix_index import PrefixIndex

RTT_WEIGHT = 0.25
BYTES_PER_TOKEN = 4
BLOCK_TOKENS = BLOCK_BYTES // BYTES_PER_TOKEN
MAX_REMEMBERED_BOOTS = 10_000
MAX_STALL_DOUBLINGS = 5
MAX_DEPARTED = 256


class RemoteNode(Protocol):
    """What a replica shares about a node that is linked to it."""

    @property
    def replica_id(self) -> str: ...

    @property
    def state(self) -> NodeState: ...


@dataclass(slots=True)
class _Sent:
    """Work of this replica on a node; tokens are what it still costs there, as far as is known."""

    work_seq: int
    prefill_tokens: int
    decode_tokens: int


@dataclass(slots=True)
class _Node:
    announcement: Announcement
    binding: Binding
    link_epoch: int
    last_heard_s: float
    prefix: PrefixIndex
    load: NodeLoad = field(default_factory=lambda: NodeLoad(ready=False))
    rtt_ms: float = 1.0
    rtt_known: bool = False
    sent: dict[AttemptKey, _Sent] = field(default_factory=dict)
    taken: dict[AttemptKey, _Sent] = field(default_factory=dict)
    stalled_until_s: float = 0.0
    last_output_s: float = float("-inf")
    stalls: int = 0
    stalled_from_s: float = float("-inf")
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
        departed_for_s: float = 60.0,
    ) -> None:
        self._clock = clock
        self._suspect_after_s = suspect_after_s
        self.lost_after_s = lost_after_s
        self._stalled_after_s = stalled_after_s
        self._departed_for_s = departed_for_s
        self._departed: dict[str, tuple[float, Kind]] = {}
        self._nodes: dict[str, _Node] = {}
        self._boots: dict[str, str] = {}
        self._remote: dict[str, NodeState] = {}
        self._snapshot: Snapshot | None = None
        self._stale: set[str] = set()
        self._holders = Holders()
        self._variants: dict[tuple[Variant, ...], tuple[Variant, ...]] = {}
        self.version = 0

    # --- written by the links -----------------------------------------------------------------------

    def register(self, announcement: Announcement, binding: Binding, link_epoch: int) -> bool:
        """Takes a node in; True when it is another process than before, so that what was learned is void."""
        boot_id = self._boots.get(announcement.node_id)
        self._boots[announcement.node_id] = announcement.boot_id
        if len(self._boots) > MAX_REMEMBERED_BOOTS:
            del self._boots[next(iter(self._boots))]
        self._forget_blocks(announcement.node_id)
        # Nodes with the same variants share the object: snapshots group them by it.
        if len(self._variants) > MAX_REMEMBERED_BOOTS:
            self._variants.clear()
        shared = self._variants.setdefault(announcement.variants, announcement.variants)
        announcement = replace(announcement, variants=shared)
        node_id = announcement.node_id
        prefix = PrefixIndex(
            on_held=partial(self._holders.add, node_id=node_id),
            on_evicted=partial(self._holders.discard, node_id=node_id),
        )
        self._nodes[announcement.node_id] = _Node(announcement, binding, link_epoch, self._clock(), prefix)
        self._departed.pop(node_id, None)
        self._changed_all()
        return boot_id not in (None, announcement.boot_id)

    def remove(self, node_id: str, link_epoch: int) -> None:
        """The link is gone; a newer epoch's node stays."""
        node = self._nodes.get(node_id)
        if node is not None and node.link_epoch == link_epoch:
            self._forget_blocks(node_id)
            del self._nodes[node_id]
            self._departed[node_id] = (self._clock(), Kind(node.announcement.variants, node.binding))
            if len(self._departed) > MAX_DEPARTED:
                del self._departed[next(iter(self._departed))]
            self._changed_all()

    def heard(self, node_id: str) -> bool:
        """Any message counts as a sign of life; True when the node was SUSPECT until now."""
        node = self._nodes.get(node_id)
        if node is None:
            return False
        now = self._clock()
        was_suspect = now - node.last_heard_s > self._suspect_after_s
        node.last_heard_s = now
        return was_suspect

    def overslept(self, seconds: float) -> None:
        """This process stood still: nobody's silence in that time says anything, their words wait unread."""
        now = self._clock()
        for node in self._nodes.values():
            node.last_heard_s = min(now, node.last_heard_s + seconds)

    def heartbeat(self, node_id: str, load: NodeLoad) -> None:
        node = self._nodes.get(node_id)
        if node is None:
            return
        node.load = load
        acked = load.last_work_seq
        if node.sent:
            node.taken.update((key, sent) for key, sent in node.sent.items() if sent.work_seq <= acked)
            node.sent = {key: sent for key, sent in node.sent.items() if sent.work_seq > acked}
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
        self._changed(node_id)
        return node.prefix.apply(delta)

    def sent(self, node_id: str, work: Work) -> None:
        node = self._nodes.get(node_id)
        if node is not None:
            # Of what lies warm there only the rest is computed.
            warm = node.prefix.matched(work.prefix_hashes) * BLOCK_TOKENS
            tokens = max(1, len(work.input) // BYTES_PER_TOKEN - warm)
            node.sent[work.key] = _Sent(work.work_seq, tokens, work.max_tokens)
            self._changed(node_id)

    def prefilled(self, node_id: str, key: AttemptKey) -> None:
        """The first token came: its prompt is no longer ahead of anybody."""
        node = self._nodes.get(node_id)
        work = None if node is None else node.taken.get(key) or node.sent.get(key)
        if node is None or work is None:
            return
        if key in node.taken:
            left = max(0, node.load.pending_prefill_tokens - work.prefill_tokens)
            node.load = replace(node.load, pending_prefill_tokens=left)
        work.prefill_tokens = 0
        self._changed(node_id)

    def ended(self, node_id: str, key: AttemptKey) -> None:
        """An attempt is over. Heartbeats come at most once a second: what the last one counted and has
        ended since is taken off, so that an idle node does not look busy until the next."""
        node = self._nodes.get(node_id)
        if node is None:
            return
        work = node.taken.pop(key, None)
        if work is not None:
            load = node.load
            node.load = replace(
                load,
                running=load.running if load.queued else max(0, load.running - 1),
                queued=max(0, load.queued - 1),
                pending_prefill_tokens=max(0, load.pending_prefill_tokens - work.prefill_tokens),
                pending_decode_tokens=max(0, load.pending_decode_tokens - work.decode_tokens),
            )
        if work is not None or node.sent.pop(key, None) is not None:
            self._changed(node_id)

    def bounced(self, node_id: str, key: AttemptKey, queued: int | None) -> None:
        """The node handed some work back. If it was full it says how many wait, newer than its heartbeat.

        A heartbeat may have acknowledged the work, but none has counted it.
        """
        node = self._nodes.get(node_id)
        if node is None:
            return
        node.sent.pop(key, None)
        node.taken.pop(key, None)
        if queued is not None:
            load = node.load
            running = max(load.running, slots_now(node.announcement, load))
            node.load = replace(load, running=running, queued=max(load.queued, queued))
        self._changed(node_id)

    def delivered(self, node_id: str) -> None:
        """The node gave output for some attempt."""
        node = self._nodes.get(node_id)
        if node is not None:
            node.last_output_s = self._clock()
            node.stalls = 0

    def mark_stalled(self, node_id: str, waiting_since_s: float, for_s: float) -> None:
        """An attempt there stood still: no new work until the time is over, which doubles with each
        stall that follows without any output between.

        Not when the node worked for others meanwhile, which only means that this attempt had to wait, and
        never for more than half of the linked nodes: then the trouble is elsewhere.
        """
        node, now = self._nodes.get(node_id), self._clock()
        if node is None or node.last_output_s >= waiting_since_s or waiting_since_s < node.stalled_from_s:
            return  # it worked meanwhile, or this attempt is of the stall that it pauses for already
        paused = sum(1 for n in self._nodes.values() if n is not node and now < n.stalled_until_s)
        if paused + 1 <= len(self._nodes) / 2:
            node.stalled_until_s = now + for_s * 2 ** min(node.stalls, MAX_STALL_DOUBLINGS)
            node.stalls += 1
            node.stalled_from_s = now
            self._changed(node_id)

    def last_output_s(self, node_id: str) -> float:
        """When the node last gave output for anybody, on the clock; minus infinity for never."""
        node = self._nodes.get(node_id)
        return float("-inf") if node is None else node.last_output_s

    # --- written by the sync ------------------------------------------------------------------------

    def learn_remote(self, records: Iterable[RemoteNode], replica_id: str) -> None:
        """Nodes that only other replicas are linked to."""
        self._remote = {r.state.node_id: r.state for r in records if r.replica_id != replica_id}
        self._changed_all()

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
        long_ago_s = self._clock() - self._departed_for_s
        for node_id in [node_id for node_id, (at_s, _) in self._departed.items() if at_s < long_ago_s]:
            del self._departed[node_id]
            self._changed_all()
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
            departed = [kind for node_id, (_, kind) in self._departed.items() if node_id not in states]
            self._snapshot = Snapshot(tuple(states.values()), states, self._holders, departed)
        elif self._stale:
            changed = [self._state(self._nodes[node_id]) for node_id in self._stale]
            self._snapshot = self._snapshot.with_changes(changed)
        self._stale.clear()
        return self._snapshot

    def _changed(self, node_id: str) -> None:
        self._nodes[node_id].state = None
        self._stale.add(node_id)
        self.version += 1

    def _changed_all(self) -> None:
        """Nodes came or went."""
        self._snapshot = None
        self._stale.clear()
        self.version += 1

    def _forget_blocks(self, node_id: str) -> None:
        node = self._nodes.get(node_id)
        if node is not None:
            for name in node.prefix.view():
                self._holders.discard(name, node_id)

    def _state(self, node: _Node) -> NodeState:
        if node.state is None:
            node.state = NodeState(
                announcement=node.announcement,
                binding=node.binding,
                load=node.load,
                health=self._health(node),
                rtt_ms=node.rtt_ms,
                in_flight=_in_flight(node.sent.values()) if node.sent else _NOTHING,
                prefix_blocks=node.prefix.view(),
                names_blocks=node.prefix.reported,
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


def _in_flight(sent: Collection[_Sent]) -> InFlight:
    return InFlight(
        requests=len(sent),
        prefill_tokens=sum(s.prefill_tokens for s in sent),
        decode_tokens=sum(s.decode_tokens for s in sent),
    )


_NOTHING = InFlight()
