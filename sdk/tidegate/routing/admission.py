"""Admission: who goes now, who waits for room, and who is refused before any prefill.

A node has room while a slot is free (or will be by the time the work arrives). Where the node chosen has room
and nobody waits for the same nodes, a request goes at once and nothing here costs it anything. Otherwise it
waits here, not at a node: here it can still be ordered, taken elsewhere or refused. It goes to a costlier
node that has room where waiting would miss its budget, or its patience if it has none.

How long it would wait is predicted from the tokens ahead of it and the pace at which its lane was served.
What cannot be met is refused at once, with the time after which it could.

Pure: time is an argument, and decisions come from the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import NamedTuple

from tidegate.routing.domain import Code, OnMiss, RouteQuery
from tidegate.routing.latency import LatencyModel
from tidegate.routing.plan import Choice, Pick, Plan, Reason, Refusal, good_enough
from tidegate.routing.policy import speed_of
from tidegate.routing.prediction import Prediction
from tidegate.routing.waiting import FLOOR_SHARE, FairQueue, Ticket

# Odds that a request must still have when its turn comes, where it could have them at all. Under overload
# whoever is served is served as late as allowed: at even odds half of them would be served for nothing.
SURE_SHARE = 0.9
# A node whose round trip is more than this share of a request's time would stand idle while work travels.
IDLE_SHARE = 0.02
RETRY_MIN_MS = 50.0
# Lanes tried per round: each costs a decision. Half of them are those that come first, the others take turns.
MAX_TRIES = 8
# Clients choose any quality they like; requests that ask for nearly the same wait in one lane.
_QUALITY_BANDS = 200
_PACE_KEEP = 0.9
_MAX_LANES = 256
_LONG_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """`waiting` requests at most; 0 sends everything to the nodes' own queues. Seconds.

    `patience_s`: how long a request without a budget waits for a cheaper node while a costlier one has room.
    `max_wait_s`: nobody waits longer.
    """

    waiting: int = 256
    patience_s: float = 2.0
    max_wait_s: float = 60.0
    floor_share: float = FLOOR_SHARE


class Granted(NamedTuple):
    """The turn of a waiting request: what was decided for it now."""

    ticket: Ticket
    result: Plan | Refusal


def has_room(choice: Choice, pick: Pick = Pick.ONLY) -> bool:
    """Whether a slot is free for one more, or will be when it arrives.

    The baselines know nothing of slots: for them a node has room until its own queue is full.
    """
    node = choice.node
    active, slots = node.active, node.slots
    if active < slots:
        return True
    if pick is Pick.BASELINE:
        return active < slots + node.announcement.queue_limit
    p = choice.prediction
    idle_share = node.rtt_ms / max(p.total_ms - p.queue_ms - p.network_ms, 1.0)
    return idle_share > IDLE_SHARE and active < slots + math.ceil(slots * min(idle_share, 1.0))


def lane_of(query: RouteQuery, reserved: frozenset[str] = frozenset()) -> Hashable:
    """What decides which nodes may serve a request. `reserved`: tenants that some node is kept for."""
    tokens = query.analysis.prompt_tokens + query.max_tokens
    return (
        query.model,
        query.placement,
        query.class_rule,
        query.needs,
        math.ceil(query.min_p_good * _QUALITY_BANDS),
        query.tenant if query.tenant in reserved else "",
        tokens.bit_length() if tokens > _LONG_TOKENS else 0,
    )


def idle(prediction: Prediction) -> Prediction:
    """The same without the wait at the node."""
    p = prediction
    return p._replace(ttft_ms=p.ttft_ms - p.queue_ms, total_ms=p.total_ms - p.queue_ms, queue_ms=0.0)


def expected_tokens(plan: Plan) -> float:
    """What a request costs: prompt tokens to compute and tokens of the answer."""
    p = plan.first.prediction
    return max(plan.query.analysis.prompt_tokens - p.cached_tokens, 1) + p.output_tokens


def slack_ms(plan: Plan, model: LatencyModel) -> float:
    """How long a request may wait so that its budget is still likely met; 0 where it is not even now,
    infinite without a budget."""
    query = plan.query
    budget, elapsed = query.budget, query.elapsed_ms
    if not budget.limits_anything:
        return math.inf
    able = [c for c in plan.choices if good_enough(c.p_good_of, query)] or list(plan.choices)
    best = min((idle(c.prediction) for c in able), key=lambda p: p.ttft_ms)
    odds = model.p_meet(best, budget, elapsed)
    share = max(query.target_share, min(SURE_SHARE, 0.95 * odds))
    if odds < share:
        return 0.0
    if budget.ttft_ms is None and budget.total_ms is None:
        return math.inf  # waiting does not change the time per token
    low, high = 0.0, max(budget.ttft_ms or 0.0, budget.total_ms or 0.0)
    for _ in range(14):
        middle = (low + high) / 2.0
        if model.p_meet(best, budget, elapsed + middle) >= share:
            low = middle
        else:
            high = middle
    return low


def place(plan: Plan, wait_ms: float, model: LatencyModel, patience_ms: float) -> Plan | None:
    """The plan to act on now, or None to wait: its first choice is who gets the request.

    `wait_ms` is how long the first choice is expected to be waited for.
    """
    first, query = plan.first, plan.query
    if has_room(first, plan.pick):
        return plan
    if first.qualified and _can_wait(first, query, wait_ms, model, patience_ms):
        other = _as_good(plan, wait_ms)
        return None if other is None else _moved(plan, other)
    needs_quality = first.qualified or good_enough(first.p_good_of, query)
    for choice in plan.fallbacks:
        fit = choice.qualified or not first.qualified
        if (
            fit
            and has_room(choice, plan.pick)
            and (not needs_quality or good_enough(choice.p_good_of, query))
        ):
            return _moved(plan, choice)
    return None


def _as_good(plan: Plan, wait_ms: float) -> Choice | None:
    """Who has room now at no higher cost and is done before the first choice would be after the wait."""
    first, query = plan.first, plan.query
    speed = speed_of(query)
    limit_ms = speed(first._replace(prediction=idle(first.prediction))) + wait_ms
    return min(
        (
            c
            for c in plan.fallbacks
            if c.qualified
            and c.cost_per_mtoken <= first.cost_per_mtoken
            and has_room(c, plan.pick)
            and speed(c) <= limit_ms
        ),
        key=speed,
        default=None,
    )


def _moved(plan: Plan, choice: Choice) -> Plan:
    others = tuple(c for c in plan.choices if c is not choice)
    return replace(plan, choices=(choice, *others), pick=Pick.HAS_ROOM)


def _can_wait(
    choice: Choice, query: RouteQuery, wait_ms: float, model: LatencyModel, patience_ms: float
) -> bool:
    if not query.budget.limits_anything:
        return wait_ms + query.elapsed_ms <= patience_ms
    odds = model.p_meet(idle(choice.prediction), query.budget, query.elapsed_ms + wait_ms)
    return odds >= query.target_share


@dataclass(slots=True)
class _Pace:
    """How a lane with waiting requests is served: tokens per second, seconds per request."""

    since_s: float
    tokens: float = 0.0
    requests: float = 0.0
    seconds: float = 0.0

    def served(self, tokens: float, now_s: float) -> None:
        self.tokens = _PACE_KEEP * self.tokens + tokens
        self.requests = _PACE_KEEP * self.requests + 1.0
        self.seconds = _PACE_KEEP * self.seconds + max(now_s - self.since_s, 0.0)
        self.since_s = now_s

    def spent_s(self, now_s: float) -> float:
        """0 until something is known. A lane that stands still gets slower by the moment."""
        return max(self.seconds, now_s - self.since_s) if self.requests else 0.0


class AdmissionQueue:
    """Decides on waiting; the caller does the waiting. One owner."""

    def __init__(self, limits: AdmissionLimits, model: LatencyModel) -> None:
        self._limits = limits
        self._model = model
        self._queue = FairQueue(limits.waiting, floor_share=limits.floor_share)
        self._paces: dict[Hashable, _Pace] = {}
        self._numbers = 0
        self._tried = 0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def is_open(self) -> bool:
        """Whether anybody may wait here."""
        return self._limits.waiting > 0

    def at_once(self, plan: Plan, reserved: frozenset[str] = frozenset()) -> bool:
        """Whether the plan may be acted on as it is: the usual case, decided in a microsecond."""
        if not has_room(plan.first, plan.pick) and self.is_open:
            return False
        return not len(self._queue) or not self._queue.waits_in(lane_of(plan.query, reserved))

    def enter(
        self,
        plan: Plan,
        tokens: float,
        now_s: float,
        *,
        deadline_s: float = math.inf,
        reserved: frozenset[str] = frozenset(),
    ) -> Plan | Ticket | Refusal:
        """A plan to act on now (on a node that has room), a ticket to wait with, or a refusal.

        `tokens` is what the request is expected to cost, `deadline_s` its hard deadline.
        """
        query = plan.query
        ticket = self._ticket(plan, tokens, now_s, deadline_s, lane_of(query, reserved))
        wait_ms = self.wait_ms(ticket, plan, now_s)
        seen = _as_full(plan) if self._queue.waits_in(ticket.lane) else plan
        placed = place(seen, wait_ms, self._model, self._limits.patience_s * 1000)
        if placed is not None:
            return placed
        begins_s = now_s + wait_ms / 1000
        if now_s + self._least_wait_ms(ticket, plan, now_s) / 1000 > ticket.leave_by_s:
            return refused(query, wait_ms - (ticket.leave_by_s - now_s) * 1000, wait_ms)
        if query.on_miss is OnMiss.REJECT and begins_s > ticket.start_by_s:
            return refused(
                query, wait_ms - (ticket.start_by_s - now_s) * 1000, wait_ms, Reason.BUDGET_UNMEETABLE
            )
        return ticket

    def push(self, ticket: Ticket, now_s: float) -> Ticket | None:
        """Waits from now on; who is shed for it, if anybody."""
        if not self._queue.waits_in(ticket.lane):
            pace = self._paces.setdefault(ticket.lane, _Pace(now_s))
            pace.since_s = now_s
            if len(self._paces) > _MAX_LANES:
                self._paces = {lane: p for lane, p in self._paces.items() if self._queue.waits_in(lane)}
                self._paces[ticket.lane] = pace
        return self._queue.push(ticket)

    def next(self, now_s: float, decide: Callable[[Ticket], Plan | Refusal]) -> Granted | None:
        """The next request whose turn it is, with what `decide` says of it now; None when nobody can go.

        Call it again after what it gave was acted on, until it gives None.
        """
        for ticket in self._tries(self._queue.heads(now_s)):
            result = decide(ticket)
            if isinstance(result, Refusal):
                self._queue.remove(ticket)
                self._tried = 0
                return Granted(ticket, result)
            wait_ms = self._wait_ms(ticket, result, now_s, 0.0)
            placed = place(result, wait_ms, self._model, self._limits.patience_s * 1000)
            if placed is not None:
                self._queue.take(ticket)
                self._paces[ticket.lane].served(ticket.tokens, now_s)
                self._tried = 0
                return Granted(ticket, placed)
        self._tried += MAX_TRIES // 2
        return None

    def _tries(self, heads: list[Ticket]) -> list[Ticket]:
        """Lanes whose nodes are full must not keep one waiting for good whose nodes are idle."""
        if len(heads) <= MAX_TRIES:
            return heads
        first, rest = heads[: MAX_TRIES // 2], heads[MAX_TRIES // 2 :]
        start = self._tried % len(rest)
        return first + (rest[start:] + rest[:start])[: MAX_TRIES - len(first)]

    def leave(self, ticket: Ticket) -> None:
        """It waits no more: its client went, or its time is over."""
        self._queue.remove(ticket)

    def settle(self, ticket: Ticket, tokens: float) -> None:
        self._queue.settle(ticket, tokens)

    def wait_ms(self, ticket: Ticket, plan: Plan, now_s: float) -> float:
        """How long it would wait, with those that go before it. Milliseconds."""
        return self._wait_ms(ticket, plan, now_s, self._queue.ahead_tokens(ticket))

    def _wait_ms(self, ticket: Ticket, plan: Plan, now_s: float, ahead_tokens: float) -> float:
        """The time between two requests, and what is ahead at the pace of the lane; where that is not known
        yet, as the nodes' own load and speed have it."""
        pace = self._pace_of(ticket, now_s)
        if pace is None:
            return plan.first.prediction.queue_ms + _ahead_ms(ticket, plan, ahead_tokens)
        return 1000.0 * pace.spent_s(now_s) * (1.0 / pace.requests + ahead_tokens / pace.tokens)

    def _least_wait_ms(self, ticket: Ticket, plan: Plan, now_s: float) -> float:
        """What nodes report of running answers is how long they may get, not how long they will. Before its
        lane's pace is known they are taken to be like this request: the first of n slots is then free after
        1 / (n + 1) of its time."""
        if self._pace_of(ticket, now_s) is not None:
            return self.wait_ms(ticket, plan, now_s)
        p, slots = plan.first.prediction, plan.first.node.slots
        slot_ms = min(p.queue_ms, (idle(p).total_ms - p.network_ms) / (slots + 1))
        return slot_ms + _ahead_ms(ticket, plan, self._queue.ahead_tokens(ticket))

    def _pace_of(self, ticket: Ticket, now_s: float) -> _Pace | None:
        """How its lane is served, once somebody of those that wait in it was."""
        pace = self._paces.get(ticket.lane) if self._queue.waits_in(ticket.lane) else None
        return pace if pace is not None and pace.spent_s(now_s) > 0.0 else None

    def _ticket(self, plan: Plan, tokens: float, now_s: float, deadline_s: float, lane: Hashable) -> Ticket:
        self._numbers += 1
        leave_by_s = now_s + self._limits.max_wait_s
        fastest_ms = min(idle(c.prediction).ttft_ms for c in plan.choices)
        leave_by_s = min(leave_by_s, deadline_s - fastest_ms / 1000)
        start_by_s = min(now_s + slack_ms(plan, self._model) / 1000, leave_by_s)
        query = plan.query
        return Ticket(
            self._numbers, query.tenant, lane, max(tokens, 1.0), now_s, start_by_s, leave_by_s, query.priority
        )


def _as_full(plan: Plan) -> Plan:
    """Others wait for the first choice already: it has no room for a newcomer, whatever it says."""
    first, node = plan.first, plan.first.node
    load = replace(node.load, queued=node.slots + node.announcement.queue_limit)
    return replace(plan, choices=(first._replace(node=replace(node, load=load)), *plan.fallbacks))


def refused(
    query: RouteQuery, retry_ms: float, wait_ms: float, reason: Reason = Reason.OVERLOADED
) -> Refusal:
    """Not now: `retry_ms` is when the wait is expected to be short enough."""
    return Refusal(
        reason,
        Code.RESOURCE_EXHAUSTED,
        query,
        {},
        retry_after_ms=max(retry_ms, RETRY_MIN_MS),
        wait_ms=wait_ms,
    )


def _ahead_ms(ticket: Ticket, plan: Plan, ahead_tokens: float) -> float:
    return 1000.0 * ahead_tokens / _expected_rate(plan, ticket.tokens)


def _expected_rate(plan: Plan, tokens: float) -> float:
    """Tokens per second that the candidates' slots would take if all were full of such requests."""
    per_ms = 0.0
    for choice in plan.choices:
        p = idle(choice.prediction)
        per_ms += choice.node.slots * tokens / max(p.total_ms - p.network_ms, 1.0)
    return 1000.0 * per_ms * plan.considered / len(plan.choices)
