"""One run: a heap of events on virtual time. Same fleet, arrivals and seed: same result."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from simulator.fleet import Fault, FleetSpec
from simulator.gateway import MAX_ATTEMPTS, Asked, Gateway, Try
from simulator.node import BlockCache, Node, Seq
from simulator.policies import chooser, fitting
from simulator.trace import Arrival
from tidegate.routing.domain import TARGET_SHARE, CacheDelta, NodeLoad
from tidegate.routing.plan import Plan, Refusal
from tidegate.routing.policy import Policy
from tidegate.routing.waiting import Ticket

LOOK_S = 0.25
# Heartbeats also come without a change, this often.
IDLE_BEAT_S = 2.0


@dataclass(slots=True)
class Served:
    """What became of an arrival; times are seconds after it. `node` None: refused, or never answered."""

    arrival: Arrival
    node: Node | None = None
    ttft_s: float = math.inf
    total_s: float = math.inf
    queue_s: float = 0.0
    cached: int = 0


class Simulation:
    """`gateway_policy` runs `policy` inside a gateway, with a gateway's knowledge; `tidegate` always is, and
    so is a policy that is given as an object."""

    def __init__(
        self,
        fleet: FleetSpec,
        arrivals: Sequence[Arrival],
        policy: str | Policy,
        *,
        seed: int = 0,
        target_share: float = TARGET_SHARE,
        gateway_policy: bool = False,
    ) -> None:
        self._fleet, self._arrivals = fleet, arrivals
        self._now_s = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._nodes = [Node(spec, i, BlockCache(spec.cache_tokens)) for i, spec in enumerate(fleet.nodes)]
        self._rng = random.Random(seed)
        self._served = [Served(a) for a in arrivals]
        self._tries: dict[Seq, tuple[Try, Gateway]] = {}
        self._seq_of: dict[Try, Seq] = {}
        self._left = len(arrivals)
        self._gateways: list[Gateway] = []
        self._beat_at = [-math.inf] * len(self._nodes)
        self._beating = [False] * len(self._nodes)
        self._faults: list[list[Fault]] = [[] for _ in self._nodes]
        if gateway_policy or policy == "tidegate" or not isinstance(policy, str):
            self._gateways = [
                Gateway(fleet, self._nodes, policy, lambda: self._now_s, seed + 1 + r, target_share)
                for r in range(fleet.replicas)
            ]
        else:
            self._choose = chooser(policy, self._seq, self._way_s, self._rng)

    def run(self) -> list[Served]:
        for node in self._nodes:
            for fault in node.spec.failures:
                self._at(fault.at_s, lambda n=node, f=fault: self._fail(n, f))  # type: ignore[misc]
        if self._arrivals:
            self._next_arrival(0)
        if self._gateways:
            self._at(LOOK_S, self._look)
        heap, pop = self._heap, heapq.heappop
        while self._left and heap:
            self._now_s, _, act = pop(heap)
            act()
        return self._served

    # --- small things ---

    def _at(self, at_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (at_s, next(self._order), act))

    def _way_s(self, node: Node, arrival: Arrival) -> float:
        """One way; the same for an arrival whoever decides."""
        mean, deviation = node.spec.rtt_ms
        return max(mean + deviation * arrival.rtt_z, 0.0) / 2000

    def _seq(self, node: Node, arrival: Arrival) -> Seq:
        return Seq(arrival, math.exp(node.spec.speed_noise * arrival.speed_z))

    def _done(self) -> None:
        self._left -= 1

    def _next_arrival(self, i: int) -> None:
        arrival = self._arrivals[i]

        def act() -> None:
            if i + 1 < len(self._arrivals):
                self._next_arrival(i + 1)
            if self._gateways:
                self._ask(self._gateways[i % len(self._gateways)], Asked(arrival))
            else:
                self._place(arrival)

        self._at(arrival.at_s, act)

    # --- the policies that see everything ---

    def _place(self, arrival: Arrival) -> None:
        nodes = fitting(arrival, self._nodes)
        if not nodes:
            self._done()
            return
        node = self._choose(arrival, nodes, self._now_s)
        self._travel(node, self._seq(node, arrival))

    # --- the product ---

    def _ask(self, gateway: Gateway, asked: Asked) -> None:
        entered = gateway.enter(asked)
        if isinstance(entered, Refusal):
            self._done()
        elif entered is not None:
            self._send(gateway, asked, entered)

    def _send(self, gateway: Gateway, asked: Asked, plan: Plan, ticket: Ticket | None = None) -> None:
        tried, arrival = gateway.send(asked, plan, ticket), asked.arrival
        node = self._nodes[tried.node]
        seq = self._seq(node, arrival)
        if arrival.slo.ttft_ms is not None:
            seq.deadline_s = arrival.at_s + arrival.slo.ttft_ms / 1000
        self._tries[seq] = (tried, gateway)
        self._seq_of[tried] = seq
        self._travel(node, seq)

    def _serve_line(self, gateway: Gateway) -> None:
        """Room may have appeared."""
        while gateway.waiting and (granted := gateway.turn()) is not None:
            asked = gateway.waiting.pop(granted.ticket.number)
            if isinstance(granted.result, Refusal):
                self._done()
            else:
                self._send(gateway, asked, granted.result, granted.ticket)

    def _look(self) -> None:
        for gateway in self._gateways:
            gateway.look(self._seq_of.__getitem__)
            gateway.model.decay(LOOK_S)
            gateway.margins.decay(LOOK_S)
            gateway.view.refresh()
            for name, _ in gateway.view.silent_nodes():
                node = next(n for n in self._nodes if n.spec.name == name)
                self._lose(node, gateway)
            if gateway.waiting:
                waits = gateway.line_numbers(self._now_s)
                for number in [n for n in gateway.waiting if n not in waits]:
                    del gateway.waiting[number]
                    self._done()
            self._serve_line(gateway)
        for node in self._nodes:
            if self._now_s - self._beat_at[node.index] >= IDLE_BEAT_S:
                self._beat(node)
        self._at(self._now_s + LOOK_S, self._look)

    def _lose(self, node: Node, gateway: Gateway) -> None:
        """The gateway has no link to the node any more."""
        gateway.unlink(node)
        for seq in [s for s, (t, g) in self._tries.items() if t.node == node.index and g is gateway]:
            tried, _ = self._forget(seq)
            if node.silent:
                node.cancel(seq)  # it learns of it as soon as it hears anything
            gateway.lost(tried, seq)
            self._again(gateway, tried)
        if node.up and not node.silent:
            gateway.link(node)  # it was only quiet for too long, and dials in again
        self._serve_line(gateway)

    def _again(self, gateway: Gateway, tried: Try) -> None:
        """What gave no token yet is tried elsewhere."""
        if tried.first_s is None and tried.asked.attempts < MAX_ATTEMPTS:
            self._ask(gateway, tried.asked)
        else:
            self._done()

    def _forget(self, seq: Seq) -> tuple[Try, Gateway]:
        tried, gateway = self._tries.pop(seq)
        del self._seq_of[tried]
        return tried, gateway

    # --- nodes and what they tell ---

    def _travel(self, node: Node, seq: Seq) -> None:
        at_s = self._now_s + self._way_s(node, seq.arrival)
        entry, epoch = (at_s, seq), node.epoch
        node.transit.append(entry)

        def arrive() -> None:
            if node.epoch != epoch:
                return
            node.transit.remove(entry)
            if self._gateways and seq not in self._tries:
                return  # it was given up meanwhile
            if self._gateways and not node.silent and self._bounced(node, seq):
                return
            before_s = node.end_s
            node.submit(seq, self._now_s)
            self._changed(node, before_s)

        self._at(at_s, arrive)

    def _bounced(self, node: Node, seq: Seq) -> bool:
        tried = self._tries[seq][0]
        waiting, active = len(node.queue), len(node.running) + len(node.queue)
        full = active >= node.spec.slots + node.spec.queue_limit
        surprised = tried.most_ahead is not None and active > tried.most_ahead and waiting
        if not (full or (surprised and len(node.running) >= node.spec.slots)):
            return False

        def back() -> None:
            if seq in self._tries:
                tried, gateway = self._forget(seq)
                gateway.bounced(tried, waiting)
                self._again(gateway, tried)
                self._serve_line(gateway)

        self._at(self._now_s + self._way_s(node, seq.arrival), back)
        return True

    def _changed(self, node: Node, before_s: float | None) -> None:
        """After something came to a node: its next event, and its heartbeat."""
        if node.end_s is not None and node.end_s != before_s:
            end_s, epoch = node.end_s, node.epoch
            self._at(end_s, lambda: self._stretch(node, end_s, epoch))
        if self._gateways:
            self._beat_soon(node)

    def _stretch(self, node: Node, end_s: float, epoch: int) -> None:
        if node.end_s != end_s or node.epoch != epoch:
            return  # it was cut short, or the node is no more as it was
        first, ended = node.finish()
        for seq in first:
            self._tell_first(node, seq)
        for seq in ended:
            self._tell_end(node, seq)
        self._changed(node, None)

    def _tell_first(self, node: Node, seq: Seq) -> None:
        at_s = self._now_s + self._way_s(node, seq.arrival)
        served = self._served[seq.arrival.number]
        served.ttft_s = at_s - seq.arrival.at_s
        if self._gateways:

            def heard() -> None:
                if seq in self._tries:
                    tried, gateway = self._tries[seq]
                    gateway.first_token(tried, seq)

            self._at(at_s, heard)

    def _tell_end(self, node: Node, seq: Seq) -> None:
        at_s = self._now_s + self._way_s(node, seq.arrival)
        served = self._served[seq.arrival.number]

        def heard() -> None:
            if self._gateways:
                if seq not in self._tries:
                    return
                tried, gateway = self._forget(seq)
                gateway.finished(tried, seq)
                self._serve_line(gateway)
            served.node, served.total_s = node, at_s - seq.arrival.at_s
            served.queue_s, served.cached = seq.started_s - seq.arrival.at_s, seq.cached
            self._done()

        self._at(at_s, heard)

    def _beat_soon(self, node: Node) -> None:
        """On change, at most once per heartbeat interval."""
        if not self._beating[node.index]:
            self._beating[node.index] = True
            due_s = self._beat_at[node.index] + self._fleet.heartbeat_s
            if due_s <= self._now_s:
                self._beat(node)
            else:
                self._at(due_s, lambda: self._beat(node))

    def _beat(self, node: Node) -> None:
        self._beating[node.index] = False
        if not node.up or node.silent:
            return
        self._beat_at[node.index] = self._now_s
        prefill, decode = node.pending(self._now_s)
        running, queued = len(node.running), len(node.queue)
        delta = None
        cache = node.cache
        if cache.held or cache.evicted:
            held, evicted = tuple(cache.held), tuple(cache.evicted)
            delta = CacheDelta(held=held, evicted=evicted, digest=cache.digest)
            cache.held, cache.evicted = set(), set()
        way_s = node.spec.rtt_ms[0] / 2000
        on_way = {id(g): sum(self._tries[s][1] is g for _, s in node.transit) for g in self._gateways}
        for gateway in self._gateways:
            load = NodeLoad(
                running, queued, prefill, decode, cache.free_tokens, self._acked(gateway, node, on_way)
            )
            self._at(self._now_s + way_s, lambda g=gateway, told=load: g.heard(node, told, delta))  # type: ignore[misc]

    def _acked(self, gateway: Gateway, node: Node, on_way: dict[int, int]) -> int:
        return gateway.sent_to(node) - on_way[id(gateway)]

    # --- failures ---

    def _fail(self, node: Node, fault: Fault) -> None:
        self._faults[node.index].append(fault)
        if fault.kind == "slow":
            self._pace(node)
        elif fault.kind == "silent":
            node.stop(self._now_s)
        else:
            node.up = False
            node.epoch += 1
            lost = [*node.drop_all(self._now_s), *(seq for _, seq in node.transit)]
            node.transit.clear()
            if self._gateways:
                for gateway in self._gateways:
                    self._lose(node, gateway)
            else:
                for seq in lost:
                    self._place(seq.arrival) if not seq.produced else self._done()
        self._at(self._now_s + fault.for_s, lambda: self._heal(node, fault))

    def _pace(self, node: Node) -> None:
        """As slow as its present faults make it together."""
        slow = math.prod(f.factor for f in self._faults[node.index] if f.kind == "slow")
        before_s = node.end_s
        node.pace(slow, self._now_s)
        self._changed(node, before_s)

    def _heal(self, node: Node, fault: Fault) -> None:
        faults = self._faults[node.index]
        faults.remove(fault)
        if fault.kind == "slow":
            self._pace(node)
            return
        still = {other.kind for other in faults}
        if node.silent and "silent" not in still:
            node.go_on(self._now_s)
            self._changed(node, None)
        node.up = "kill" not in still
        if not node.up or node.silent:
            return
        for gateway in self._gateways:
            if node.spec.name not in gateway.view.snapshot().by_id:
                gateway.link(node)
        self._beat(node)
