"""A gateway replica on virtual time: the product's own view, latency model, admission and policy.

It knows of a node what heartbeats say, of its own work what it sent and what came back, and nothing else.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simulator.fleet import FleetSpec, NodeSpec, Slo
from simulator.node import Node, Seq
from simulator.trace import MAX_NAMES, Arrival
from tidegate.routing.admission import AdmissionLimits, AdmissionQueue, Granted, expected_tokens
from tidegate.routing.baselines import policy_named
from tidegate.routing.crowding import Crowding
from tidegate.routing.domain import (
    Analysis,
    Announcement,
    AttemptKey,
    Binding,
    Budget,
    CacheDelta,
    InputKind,
    NodeLoad,
    ReplayClass,
    RouteQuery,
    Sampling,
    Speeds,
    Variant,
    Work,
)
from tidegate.routing.exploring import explored
from tidegate.routing.fleet import BYTES_PER_TOKEN, Fleet
from tidegate.routing.herding import most_ahead
from tidegate.routing.latency import LearnedLatency
from tidegate.routing.margin import Margins
from tidegate.routing.observation import Observation, Outcome, Stage
from tidegate.routing.plan import Choice, Plan, Refusal
from tidegate.routing.policy import Policy
from tidegate.routing.waiting import Ticket

REQUIRED_P_GOOD = 0.8
MAX_ATTEMPTS = 3
# As the gateway's own dispatch has them.
LATE_TIMES, MIN_LATE_MS = 1.5, 100.0


@dataclass(slots=True, eq=False)
class Asked:
    """A request between its attempts: nodes that it was lost on, and `full` ones that bounced it."""

    arrival: Arrival
    attempts: int = 0
    tried: frozenset[str] = frozenset()
    full: frozenset[str] = frozenset()


@dataclass(slots=True, eq=False)
class Try:
    """One attempt on a node."""

    asked: Asked
    choice: Choice
    key: AttemptKey
    sent_s: float
    most_ahead: int | None
    node: int
    late_s: float = math.inf
    first_s: float | None = None
    told: bool = False
    ticket: Ticket | None = None


class _Ability:
    """P(u < ability) for a difficulty that was seen with known noise: what a calibrated judge would say."""

    def __init__(self, fleet: FleetSpec) -> None:
        self._ability, self._noise = fleet.ability, max(fleet.seen_noise, 1e-6)

    def p_good(self, variant: Variant, difficulty: float) -> float:
        gap = (self._ability.get(variant.digest, 1.0) - difficulty) / self._noise
        return 0.5 * math.erfc(-gap / math.sqrt(2.0))

    def certified(self, variant: Variant) -> bool:
        return True


class Gateway:
    """`now` reads the virtual clock in seconds."""

    def __init__(
        self,
        fleet: FleetSpec,
        nodes: list[Node],
        policy: str | Policy,
        now: Callable[[], float],
        seed: int,
        target_share: float,
    ) -> None:
        self.view = Fleet(now)
        self.model = LearnedLatency()
        self.margins = Margins()
        self.crowding = Crowding()
        self.line = AdmissionQueue(AdmissionLimits(), self.model)
        self.tickets: dict[int, Ticket] = {}
        self.waiting: dict[int, Asked] = {}
        self.open: dict[AttemptKey, Try] = {}
        self._now = now
        self._target_share = target_share
        self._classes: dict[Slo, RouteQuery] = {}
        self._policy = policy_named(policy) if isinstance(policy, str) else policy
        self._rng = random.Random(seed).random
        self._quality = _Ability(fleet)
        self._seqs = [0] * len(nodes)
        self._index = {n.spec.name: n.index for n in nodes}
        self._boots = [0] * len(nodes)
        for node in nodes:
            self.link(node)

    def link(self, node: Node) -> None:
        """A node dials in; again after a crash."""
        self._boots[node.index] += 1
        boot = self._boots[node.index]
        spec = node.spec
        self.view.register(_announcement(spec, boot), _binding(spec), boot)
        self.view.heartbeat(spec.name, NodeLoad(last_work_seq=self._seqs[node.index]))
        self.view.rtt(spec.name, max(spec.rtt_ms[0], 0.01))

    def unlink(self, node: Node) -> None:
        self.view.remove(node.spec.name, self._boots[node.index])

    def _decide(self, asked: Asked) -> Plan | Refusal:
        """Full nodes come last: they have tried nothing, and can be waited for."""
        plan = self._route(asked.arrival, asked.tried | asked.full)
        if asked.full and isinstance(plan, Refusal) and self.line.is_open:
            plan = self._route(asked.arrival, asked.tried)
        return plan

    def _route(self, arrival: Arrival, excluded: frozenset[str]) -> Plan | Refusal:
        alike = self._alike(arrival.slo)
        query = RouteQuery(
            model=alike.model,
            analysis=Analysis(arrival.prompt_tokens, lambda: arrival.seen, arrival.names[:MAX_NAMES]),
            max_tokens=arrival.max_tokens,
            budget=alike.budget,
            target_share=alike.target_share,
            min_p_good=REQUIRED_P_GOOD if arrival.required else 0.0,
            excluded=excluded,
            elapsed_ms=(self._now() - arrival.at_s) * 1000,
            margins=self.margins.of(alike),
            longest_ms=self.crowding.longest_ms(alike.model),
        )
        return self._policy.route(self.view.snapshot(), query, self.model, self._rng, self._quality)

    def _alike(self, slo: Slo) -> RouteQuery:
        """What all requests of a class have in common; made once."""
        found = self._classes.get(slo)
        if found is None:
            budget = Budget(ttft_ms=slo.ttft_ms, tpot_ms=slo.tpot_ms, total_ms=slo.total_ms)
            analysis = Analysis(0, lambda: 0.0)
            found = RouteQuery("sim", analysis, 0, budget, self._target_share, 0.0)
            self._classes[slo] = found
        return found

    def enter(self, asked: Asked) -> Plan | Refusal | None:
        """A plan to send, None for who waits, or a refusal."""
        plan = self._decide(asked)
        if isinstance(plan, Refusal):
            return plan
        plan = explored(plan, self._rng)
        if self.line.at_once(plan):
            return plan
        now_s = self._now()
        entered = self.line.enter(plan, expected_tokens(plan), now_s)
        if isinstance(entered, Ticket):
            self.waiting[entered.number] = asked
            self.tickets[entered.number] = entered
            shed = self.line.push(entered, now_s)
            if shed is not None:
                self.tickets.pop(shed.number, None)
            return None
        return entered

    def turn(self) -> Granted | None:
        """Whose turn it is, if anybody's."""

        def decide(ticket: Ticket) -> Plan | Refusal:
            asked = self.waiting[ticket.number]
            return self._route(asked.arrival, asked.tried)

        granted = self.line.next(self._now(), decide)
        if granted is not None:
            self.tickets.pop(granted.ticket.number, None)
        return granted

    def line_numbers(self, now_s: float) -> set[int]:
        """Who still waits; those whose time is over leave."""
        for ticket in [t for t in self.tickets.values() if t.leave_by_s <= now_s]:
            self.line.leave(ticket)
            del self.tickets[ticket.number]
        return set(self.tickets)

    def send(self, asked: Asked, plan: Plan, ticket: Ticket | None = None) -> Try:
        """`ticket` where it had waited."""
        choice, now_s, arrival = plan.first, self._now(), asked.arrival
        asked.attempts += 1
        index = self._index[choice.node.node_id]
        self._seqs[index] += 1
        key = AttemptKey(str(arrival.number), asked.attempts)
        work = Work(
            key=key,
            tenant="default",
            variant_digest=choice.variant.digest,
            input_kind=InputKind.TEXT,
            input=bytes(arrival.prompt_tokens * BYTES_PER_TOKEN),
            sampling=Sampling(),
            max_tokens=arrival.max_tokens,
            work_seq=self._seqs[index],
            prefix_hashes=arrival.names[:MAX_NAMES],
        )
        self.view.sent(choice.node.node_id, work)
        late_ms = max(choice.prediction.ttft_p95_ms, MIN_LATE_MS) * LATE_TIMES
        ahead = most_ahead(plan) if asked.attempts < MAX_ATTEMPTS else None
        tried = Try(asked, choice, key, now_s, ahead, index, now_s + late_ms / 1000, ticket=ticket)
        self.open[key] = tried
        self.crowding.decided(plan)
        return tried

    def heard(self, node: Node, load: NodeLoad, delta: CacheDelta | None) -> None:
        self.view.heard(node.spec.name)
        self.view.heartbeat(node.spec.name, load)
        if delta is not None:
            self.view.cache_report(node.spec.name, delta)

    def sent_to(self, node: Node) -> int:
        return self._seqs[node.index]

    def first_token(self, tried: Try, seq: Seq) -> None:
        tried.first_s = self._now()
        self.view.prefilled(tried.choice.node.node_id, tried.key)
        self.view.delivered(tried.choice.node.node_id)

    def finished(self, tried: Try, seq: Seq) -> None:
        self._close(tried)
        self.model.record(self._observation(tried, seq, Stage.ENDED, Outcome.FINISHED))
        if tried.choice.qualified and tried.key.attempt_no == 1:
            self._learn_margin(tried, seq)
        if tried.ticket is not None:
            cost = seq.arrival.prompt_tokens - seq.cached + seq.produced
            self.line.settle(tried.ticket, float(cost))

    def lost(self, tried: Try, seq: Seq) -> None:
        """Its node is gone. Without a first token what it waited is a lower bound."""
        self._close(tried)
        tried.asked.tried |= {tried.choice.node.node_id}
        self.model.record(self._observation(tried, seq, Stage.ENDED, Outcome.FAILED))

    def bounced(self, tried: Try, queued: int) -> None:
        """The node says how many wait there. Nothing was computed, so nothing is learned about speed."""
        name = tried.choice.node.node_id
        self.view.bounced(name, tried.key, queued)
        self._close(tried)
        tried.asked.full |= {name}

    def _close(self, tried: Try) -> None:
        self.open.pop(tried.key, None)
        self.view.ended(tried.choice.node.node_id, tried.key)

    def _learn_margin(self, tried: Try, seq: Seq) -> None:
        slo, at_s = seq.arrival.slo, seq.arrival.at_s
        first_s, now_s = tried.first_s or self._now(), self._now()
        tpot_ms = (now_s - first_s) * 1000 / (seq.produced - 1) if seq.produced > 1 else 0.0
        met = (
            (slo.ttft_ms is None or (first_s - at_s) * 1000 <= slo.ttft_ms)
            and (slo.tpot_ms is None or tpot_ms <= slo.tpot_ms)
            and (slo.total_ms is None or (now_s - at_s) * 1000 <= slo.total_ms)
        )
        self.margins.record(self._alike(slo), tried.choice.node.binding.tier, met=met)

    def look(self, seqs: Callable[[Try], Seq]) -> None:
        """A few times a second: what attempts that still run teach."""
        now_s = self._now()
        for tried in list(self.open.values()):
            if tried.first_s is not None:
                if not tried.told:
                    self.model.record(
                        self._observation(tried, seqs(tried), Stage.FIRST_TOKEN, Outcome.RUNNING)
                    )
                    tried.told = True
            elif now_s >= tried.late_s:
                tried.late_s = now_s + (now_s - tried.sent_s) * (LATE_TIMES - 1.0)
                self.model.record(self._observation(tried, None, Stage.WAITING, Outcome.RUNNING))

    def _observation(self, tried: Try, seq: Seq | None, stage: Stage, outcome: Outcome) -> Observation:
        choice, announced = tried.choice, tried.choice.node.announcement
        now_s, first_s = self._now(), tried.first_s
        waited_s = now_s - tried.sent_s if first_s is None else first_s - tried.sent_s
        told: dict[str, Any] = {}
        if seq is not None and first_s is not None:
            produced = seq.produced
            ended = stage is Stage.ENDED and produced > 1
            told = {
                "actual_tpot_ms": (now_s - first_s) * 1000 / (produced - 1) if ended else None,
                "queue_ms": (seq.started_s - seq.submitted_s) * 1000,
                "prefill_ms": (seq.first_s - seq.started_s) * 1000,
                "cached_tokens": seq.cached,
                "prompt_tokens": seq.arrival.prompt_tokens,
                "batch_size": seq.batch,
                "output_tokens": produced,
                "stopped": outcome is Outcome.FINISHED and produced < seq.arrival.max_tokens,
            }
        return Observation(
            node_id=announced.node_id,
            variant_digest=choice.variant.digest,
            model=choice.variant.model,
            hardware_class=announced.hardware_class,
            boot_id=announced.boot_id,
            prediction=choice.prediction,
            stage=stage,
            actual_ttft_ms=waited_s * 1000,
            max_tokens=tried.asked.arrival.max_tokens,
            outcome=outcome,
            censored=first_s is None,
            first_token_told=tried.told,
            **told,
        )


def _announcement(spec: NodeSpec, boot: int) -> Announcement:
    variant = Variant("sim", spec.variant, context_tokens=spec.context_tokens)
    return Announcement(
        node_id=spec.name,
        boot_id=f"{spec.name}.{boot}",
        name=spec.name,
        variants=(variant,),
        slots=spec.slots,
        queue_limit=min(spec.queue_limit, 1 << 20),
        build="sim",
        replay_class=ReplayClass.TOKENS,
        replay_digest=spec.variant,
        hardware_class=f"{spec.tier.value}-{spec.slots}-{spec.prefill_tps:g}",
        speeds=Speeds(spec.prefill_tps, spec.decode),
    )


def _binding(spec: NodeSpec) -> Binding:
    return Binding(spec.tier, spec.region, cost_per_mtoken=spec.cost_per_mtoken)
