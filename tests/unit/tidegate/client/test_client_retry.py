"""Retries: only with zero messages, within attempts, deadline and budget, moving between addresses."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest

import tidegate
from tidegate.client.errors import Overloaded
from tidegate.client.retry import CallPlan, RetryBudget, RetryPolicy
from tidegate.routing.domain import Code, ServeError
from tidegate.testing import Fail, FakeGateway, Hang, answer

FAST = tidegate.RetryPolicy(attempts=4, base_ms=2.0, max_ms=10.0)
UNAVAILABLE = Fail(grpc.StatusCode.UNAVAILABLE)
CANCELLED = Fail(grpc.StatusCode.CANCELLED)


@pytest.mark.parametrize("failure", [UNAVAILABLE, CANCELLED], ids=["unavailable", "servers-cancelled"])
async def test_retried_with_zero_messages(
    gateway: FakeGateway, client: tidegate.Client, failure: Fail
) -> None:
    gateway.fail_next(failure, failure)
    assert (await client.complete("a b")).text == "ab"
    gateway.fail_next(failure)
    assert await client.nodes() == ()
    assert gateway.calls == 5


@pytest.mark.parametrize("failure", [UNAVAILABLE, CANCELLED], ids=["unavailable", "servers-cancelled"])
@pytest.mark.parametrize("texts", [(), ("a",)], ids=["accepted-only", "after-a-token"])
async def test_never_retried_after_a_message(
    gateway: FakeGateway, client: tidegate.Client, failure: Fail, texts: tuple[str, ...]
) -> None:
    gateway.script(*answer(*texts, finish=False), failure)
    with pytest.raises((tidegate.Unavailable, tidegate.Cancelled)):
        await client.complete("hi")
    assert gateway.calls == 1


@pytest.mark.parametrize("status", [grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED])
async def test_other_errors_are_not_retried(
    gateway: FakeGateway, client: tidegate.Client, status: grpc.StatusCode
) -> None:
    gateway.fail_next(Fail(status))
    with pytest.raises(tidegate.TidegateError):
        await client.complete("hi")
    assert gateway.calls == 1


async def test_attempts_are_bounded(gateway: FakeGateway, client: tidegate.Client) -> None:
    gateway.fail_next(*[UNAVAILABLE] * 10)
    with pytest.raises(tidegate.Unavailable):
        await client.complete("hi")
    assert gateway.calls == FAST.attempts


async def test_failover_to_the_next_address(gateway: FakeGateway, dead_address: str) -> None:
    addresses = [dead_address, gateway.address]
    async with tidegate.Client(addresses, retry=FAST, random=lambda: 0.0) as client:
        assert (await client.complete("a b")).text == "ab"
        assert len(await client.models()) == 0
    assert gateway.calls == 2


async def test_all_addresses_dead(dead_address: str) -> None:
    async with tidegate.Client([dead_address], retry=FAST) as client:
        with pytest.raises(tidegate.Unavailable):
            await client.complete("hi")


async def test_clients_start_at_different_addresses() -> None:
    async with FakeGateway() as first, FakeGateway() as second:
        draws = iter((0.0, 0.99))
        for _ in range(2):
            async with tidegate.Client([first.address, second.address], random=lambda: next(draws)) as client:
                await client.nodes()
        assert (first.calls, second.calls) == (1, 1)


async def test_a_killed_gateway_is_left_for_the_other() -> None:
    async with FakeGateway() as first, FakeGateway() as second:
        addresses = [first.address, second.address]
        async with tidegate.Client(addresses, retry=FAST, random=lambda: 0.0) as client:
            first.script(Hang())
            waiting = asyncio.create_task(client.complete("a b"))
            async with asyncio.timeout(5):
                await first.wait_requests()
            await first.stop()
            assert (await waiting).text == "ab"
            assert (first.calls, second.calls) == (1, 1)


async def test_a_short_retry_info_is_waited_for(gateway: FakeGateway, client: tidegate.Client) -> None:
    gateway.fail_next(Fail(ServeError(Code.UNAVAILABLE, "draining", retry_after_ms=120)))
    started = time.monotonic()
    await client.complete("hi")
    assert time.monotonic() - started >= 0.12


async def test_a_long_retry_info_is_the_callers_to_see(gateway: FakeGateway, client: tidegate.Client) -> None:
    gateway.fail_next(Fail(ServeError(Code.UNAVAILABLE, "draining", retry_after_ms=60_000)))
    with pytest.raises(tidegate.Unavailable) as caught:
        await client.complete("hi")
    assert caught.value.retry_after_ms == 60_000
    assert gateway.calls == 1


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _plan(policy: RetryPolicy, clock: Clock, **more: object) -> CallPlan:
    defaults = {"deadline_s": None, "uniform": lambda: 1.0, "budget": RetryBudget(policy)} | more
    budget = defaults.pop("budget")
    return CallPlan(policy, budget, clock=clock, **defaults)  # type: ignore[arg-type]


LOST = tidegate.Unavailable("x")


def test_pauses_grow_to_their_ceiling() -> None:
    plan = _plan(RetryPolicy(attempts=5, base_ms=100, max_ms=300), Clock())
    pauses = []
    for _ in range(5):
        plan.start_attempt()
        pauses.append(plan.pause_s(LOST))
    assert pauses == [0.1, 0.2, 0.3, 0.3, None]


def test_the_deadline_covers_all_tries_and_pauses() -> None:
    clock = Clock()
    plan = _plan(RetryPolicy(base_ms=100), clock, deadline_s=1.0)
    assert plan.start_attempt() == 1.0
    clock.now += 0.85
    assert plan.pause_s(LOST) == 0.1
    clock.now += 0.1
    assert plan.start_attempt() == pytest.approx(0.05)
    assert plan.pause_s(LOST) is None
    clock.now += 0.06
    with pytest.raises(tidegate.DeadlineExceeded):
        plan.start_attempt()


def test_the_budget_stops_retries_and_recovers_with_successes() -> None:
    policy = RetryPolicy(budget_tokens=2, budget_refill=0.5)
    budget = RetryBudget(policy)
    tried = []
    for _ in range(3):
        plan = _plan(policy, Clock(), budget=budget)
        plan.start_attempt()
        tried.append(plan.pause_s(LOST) is not None)
    assert tried == [True, True, False]
    plan.succeeded()
    plan.succeeded()
    assert budget.spend()


def test_overload_is_never_retried() -> None:
    plan = _plan(RetryPolicy(), Clock())
    plan.start_attempt()
    assert plan.pause_s(Overloaded("busy", retry_after_ms=1)) is None


@pytest.mark.parametrize("fields", [{"attempts": 0}, {"base_ms": -1.0}])
def test_policies_that_make_no_sense(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        RetryPolicy(**fields)  # type: ignore[arg-type]
