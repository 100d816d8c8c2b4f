"""Where requests wait for room on the nodes they may use. The discipline is tidegate.routing.admission's;
here is the waiting.

Nothing of it runs while every request finds room. One turn is given at a time: who got it hands its work to a
node in the same step of the event loop, and only then the next decision is taken, on a snapshot that knows.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from gateway.telemetry import Metrics
from tidegate.routing.admission import AdmissionQueue, expected_tokens, refused
from tidegate.routing.domain import Code, OnMiss
from tidegate.routing.plan import Plan, Reason, Refusal
from tidegate.routing.waiting import Ticket

# Odds change and other replicas' work ends without any event here.
TICK_S = 0.05


class Turn(NamedTuple):
    """What a request gets, now or after its wait. `ticket` is None where it did not wait."""

    plan: Plan
    ticket: Ticket | None = None


@dataclass(slots=True)
class _Waiter:
    decide: Callable[[], Plan | Refusal]
    turn: asyncio.Future[Plan | Refusal]
    plan: Plan


class Line:
    """One per dispatcher. `reserved` are the tenants that some node is kept for."""

    def __init__(
        self,
        queue: AdmissionQueue,
        metrics: Metrics,
        clock: Callable[[], float],
        *,
        reserved: frozenset[str] = frozenset(),
    ) -> None:
        self._queue = queue
        self._metrics = metrics
        self._clock = clock
        self._reserved = reserved
        self._waiters: dict[int, _Waiter] = {}
        self._timer: asyncio.Handle | None = None

    def __len__(self) -> int:
        return len(self._waiters)

    @property
    def is_open(self) -> bool:
        """Whether anybody may wait here."""
        return self._queue.is_open

    def at_once(self, plan: Plan) -> bool:
        return self._queue.at_once(plan, self._reserved)

    async def turn(
        self, plan: Plan, deadline_s: float | None, decide: Callable[[], Plan | Refusal]
    ) -> Turn | Refusal:
        """Returns when the request may be sent, with the plan that holds then, or when it cannot be in time.

        The work must be handed to a node before the caller waits for anything else.
        """
        now_s = self._clock()
        entered = self._queue.enter(
            plan,
            expected_tokens(plan),
            now_s,
            deadline_s=math.inf if deadline_s is None else deadline_s,
            reserved=self._reserved,
        )
        if isinstance(entered, Plan):
            return Turn(entered)
        if isinstance(entered, Refusal):
            return self._counted(entered)
        return await self._wait(entered, _Waiter(decide, asyncio.get_running_loop().create_future(), plan))

    def notify(self) -> None:
        """Room may have appeared."""
        if self._waiters:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_soon(self._serve)

    def finished(self, turn: Turn | None, tokens: int) -> None:
        """What an answer really cost."""
        if turn is not None and turn.ticket is not None:
            self._queue.settle(turn.ticket, float(tokens))

    async def _wait(self, ticket: Ticket, waiter: _Waiter) -> Turn | Refusal:
        started_s = self._clock()
        self._waiters[ticket.number] = waiter
        try:
            shed = self._queue.push(ticket, started_s)
            if shed is not None:
                self._shed(shed)
            self._metrics.waiting.set(len(self._waiters))
            self._again()
            result = await self._until(ticket, waiter)
        finally:
            self._queue.leave(ticket)
            del self._waiters[ticket.number]
            self._metrics.waiting.set(len(self._waiters))
            self._metrics.wait.observe(self._clock() - started_s)
            self.notify()  # runs after this request has handed over its work
        if isinstance(result, Refusal):
            return self._counted(result)
        return Turn(result, ticket)

    async def _until(self, ticket: Ticket, waiter: _Waiter) -> Plan | Refusal:
        """Its turn, or a refusal once it cannot be served in time any more."""
        strict = waiter.plan.query.on_miss is OnMiss.REJECT
        limit_s = ticket.start_by_s if strict else ticket.leave_by_s
        try:
            async with asyncio.timeout(max(limit_s - self._clock(), 0.0)):
                return await waiter.turn
        except TimeoutError:
            wait_ms = self._queue.wait_ms(ticket, waiter.plan, self._clock())
            reason = Reason.BUDGET_UNMEETABLE if ticket.start_by_s < ticket.leave_by_s else Reason.OVERLOADED
            return refused(waiter.plan.query, wait_ms, wait_ms, reason if strict else Reason.OVERLOADED)

    def _serve(self) -> None:
        """Gives the next turn, if somebody can have one."""
        self._timer = None
        granted = self._queue.next(self._clock(), lambda ticket: self._waiters[ticket.number].decide())
        if granted is None:
            self._again()
            return
        waiter = self._waiters[granted.ticket.number]
        if not waiter.turn.done():
            waiter.turn.set_result(granted.result)

    def _again(self) -> None:
        if self._waiters and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._serve)

    def _shed(self, ticket: Ticket) -> None:
        waiter = self._waiters[ticket.number]
        if not waiter.turn.done():
            wait_ms = self._queue.wait_ms(ticket, waiter.plan, self._clock())
            waiter.turn.set_result(refused(waiter.plan.query, wait_ms, wait_ms))

    def _counted(self, refusal: Refusal) -> Refusal:
        if refusal.code is Code.RESOURCE_EXHAUSTED:
            self._metrics.shed.labels(refusal.reason.value.lower()).inc()
        return refusal
