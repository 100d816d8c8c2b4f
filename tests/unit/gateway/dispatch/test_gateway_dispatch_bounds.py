"""Deadlines, stalls, cancels, admission: what ends a request other than its answer."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, aclosing, suppress

import pytest
from dispatch_rig import SILENT, Rig, answer, ask, fails, token

from gateway.app import wiring
from gateway.dispatch import Levels
from gateway.dispatch.admission import Admission
from gateway.dispatch.caller import Client
from gateway.dispatch.intake import MAX_INPUT_BYTES, MAX_STOP_CHARS
from gateway.settings import GatewaySettings
from tidegate.link import intake as link_intake
from tidegate.routing.domain import (
    Accepted,
    Cause,
    Chunk,
    Code,
    Finished,
    GenerateEvent,
    GenerateRequest,
    ServeError,
)
from tidegate.routing.naming import ModelNames

pytestmark = pytest.mark.looptime


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def refused(rig: Rig, request: GenerateRequest, client: Client = Client()) -> ServeError:  # noqa: B008
    with pytest.raises(ServeError) as caught:
        await rig.run(request, client)
    return caught.value


async def test_a_node_that_stops_between_tokens_ends_the_request() -> None:
    rig = Rig(n1=[[(0.1, token(0)), (0.1, token(1))]], n2=[answer()])
    error = await refused(rig, ask())
    assert (error.code, error.reason) == (Code.UNAVAILABLE, "STALLED")
    assert now_s() == pytest.approx(10.2)
    assert rig.nodes.cancelled == [rig.nodes.works[0][1].key]


async def test_a_slow_but_steady_node_is_no_stalled_one() -> None:
    rig = Rig(n1=[answer(4, every_s=9.9)])
    assert isinstance((await rig.run(ask()))[-1], Finished)


@pytest.mark.parametrize("script", [SILENT, [(0.1, token(0))]], ids=["before a token", "after one"])
async def test_the_deadline_is_hard_and_frees_the_node(script: list) -> None:  # type: ignore[type-arg]
    rig = Rig(n1=[script], n2=[answer()])
    error = await refused(rig, ask(remaining_ms=700.0))
    assert error.code is Code.DEADLINE_EXCEEDED
    assert now_s() == pytest.approx(0.7)
    assert rig.nodes.cancelled == [rig.nodes.works[0][1].key]
    assert rig.tried == ["n1"]


async def test_no_attempt_begins_after_the_deadline() -> None:
    rig = Rig(n1=[fails(Cause.OVERLOADED, after_s=0.5)], n2=[answer()])
    error = await refused(rig, ask(remaining_ms=500.0))
    assert error.code is Code.DEADLINE_EXCEEDED
    assert rig.tried == ["n1"]


async def take(rig: Rig, seen: list[GenerateEvent], request: GenerateRequest, wanted: int) -> None:
    """A client that leaves after `wanted` events, or is cancelled before."""
    async with aclosing(rig.dispatcher.generate(request, Client())) as events:
        async for event in events:
            seen.append(event)
            if len(seen) == wanted:
                return


async def test_a_client_that_leaves_mid_stream_frees_the_node() -> None:
    rig, seen = Rig(n1=[answer(50)]), []
    await take(rig, seen, ask(), 3)
    assert [type(e) for e in seen] == [Accepted, Chunk, Chunk]
    assert rig.nodes.cancelled == [rig.nodes.works[0][1].key]
    assert rig.admission.in_flight == 0
    assert rig.count("tidegate_requests_total", tier="edge", code="cancelled", reason="") == 1
    assert rig.count("tidegate_requests_in_flight") == 0


async def test_a_client_that_leaves_before_the_first_token_frees_the_node() -> None:
    rig = Rig(n1=[SILENT])
    task = asyncio.create_task(take(rig, [], ask(), 1))
    await asyncio.sleep(1.0)
    assert rig.admission.in_flight == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert rig.nodes.cancelled == [rig.nodes.works[0][1].key]
    assert rig.admission.in_flight == 0
    assert rig.count("tidegate_attempts_total", tier="edge", outcome="cancelled") == 1


async def test_a_full_gateway_refuses_at_once_and_counts_it() -> None:
    rig = Rig(in_flight=1, n1=[SILENT, answer(1)])
    first = asyncio.create_task(rig.run(ask("a")))
    await asyncio.sleep(0.1)
    error = await refused(rig, ask("b"))
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert error.retry_after_ms is not None
    assert now_s() == pytest.approx(0.1)
    reason = {"tier": "none", "code": "resource_exhausted", "reason": "OVERLOADED"}
    assert rig.count("tidegate_requests_total", **reason) == 1
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert isinstance((await rig.run(ask("b")))[-1], Finished)  # room again


async def test_the_prompts_being_served_are_bounded_in_bytes() -> None:
    rig = Rig(n1=[SILENT, answer(1), answer(1)])
    rig.admission._limit_bytes = 1000
    first = asyncio.create_task(rig.run(ask("a", messages=(), prompt="x" * 600)))
    await asyncio.sleep(0.1)
    error = await refused(rig, ask("b", messages=(), prompt="x" * 600))
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert isinstance((await rig.run(ask("c", messages=(), prompt="x" * 300)))[-1], Finished)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert isinstance((await rig.run(ask("b", messages=(), prompt="x" * 600)))[-1], Finished)


async def test_a_request_id_is_served_once_at_a_time_per_tenant() -> None:
    rig = Rig(n1=[SILENT, answer(1), answer(1)])
    first = asyncio.create_task(rig.run(ask("a")))
    await asyncio.sleep(0.1)
    error = await refused(rig, ask("a"))
    assert (error.code, error.param) == (Code.ALREADY_EXISTS, "request_id")
    assert isinstance((await rig.run(ask("a"), Client(tenant="other")))[-1], Finished)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert isinstance((await rig.run(ask("a")))[-1], Finished)


async def test_draining_refuses_new_requests_and_waits_for_running_ones() -> None:
    rig = Rig(n1=[answer(20, every_s=0.1), answer(1)])
    running = asyncio.create_task(rig.run(ask("a")))
    await asyncio.sleep(0.5)
    drain = asyncio.create_task(rig.admission.drain(30.0))
    await asyncio.sleep(0)
    error = await refused(rig, ask("b"))
    assert (error.code, error.reason) == (Code.UNAVAILABLE, "DRAINING")
    await drain
    assert now_s() == pytest.approx(2.0)
    assert isinstance((await running)[-1], Finished)


async def test_draining_is_bounded() -> None:
    rig = Rig(n1=[SILENT])
    running = asyncio.create_task(rig.run(ask("a")))
    await asyncio.sleep(0)
    await rig.admission.drain(3.0)
    assert now_s() == pytest.approx(3.0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_defect_is_counted_as_one_and_leaves_nothing_behind() -> None:
    rig = Rig(n1=[answer()])
    rig.dispatcher._new_token = lambda: "t"

    class Broken:
        def route(self, *args: object) -> None:
            raise ZeroDivisionError

    rig.dispatcher._decider._policy = Broken()  # type: ignore[assignment]
    with pytest.raises(ZeroDivisionError):
        await rig.run(ask())
    assert rig.count("tidegate_requests_total", tier="none", code="internal", reason="") == 1
    assert rig.admission.in_flight == 0


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (ask(max_tokens=101), "max_tokens"),
        (ask(data_class="nonsense"), "data_class"),
        (ask(messages=(), prompt="x" * (MAX_INPUT_BYTES + 1)), "input"),
        (ask(stop=("x" * (MAX_STOP_CHARS // 2),) * 3), "stop"),
    ],
    ids=["max_tokens", "data_class", "input", "stop"],
)
async def test_what_cannot_be_served_is_refused_before_any_work(
    request_: GenerateRequest, param: str
) -> None:
    rig = Rig(levels=Levels(max_tokens_limit=100), n1=[answer()])
    error = await refused(rig, request_)
    assert (error.code, error.param) == (Code.INVALID_ARGUMENT, param)
    assert rig.tried == []
    assert rig.admission.in_flight == 0
    assert (
        rig.count("tidegate_requests_total", tier="none", code="invalid_argument", reason=error.reason) == 1
    )


def test_what_the_gateway_lets_through_a_link_can_carry() -> None:
    assert MAX_INPUT_BYTES <= link_intake.MAX_INPUT_BYTES


async def test_levels_fill_in_what_a_request_leaves_open() -> None:
    rig = Rig(
        levels=Levels(max_tokens=77, names=ModelNames(aliases={"small": "tide-1b"})),
        n1=[answer(1), answer(1)],
    )
    await rig.run(ask("a", max_tokens=0, model="small"))
    assert rig.nodes.works[0][1].max_tokens == 77
    await rig.run(ask("b", model="tide"))  # the node's own alias
    error = await refused(rig, ask("c", model="unknown"))
    assert error.code is Code.NOT_FOUND


def held_by_one(admission: Admission, held: ExitStack, tenant: str, count: int, size: int = 0) -> int:
    """How many of so many requests of a tenant are admitted."""
    admitted = 0
    for number in range(count):
        with suppress(ServeError):
            held.enter_context(admission.admit(tenant, f"{number}", size))
            admitted += 1
    return admitted


@pytest.mark.parametrize(("limit", "limit_bytes"), [(90, 1 << 30), (1000, 9000)])
def test_no_tenant_takes_all_the_room_where_there_are_others(limit: int, limit_bytes: int) -> None:
    shared, alone = Admission(limit, limit_bytes, shared=True), Admission(limit, limit_bytes)
    with ExitStack() as held:
        assert held_by_one(shared, held, "greedy", 100, 100) == 80
        assert held_by_one(shared, held, "late", 100, 100) in (8, 9)
        assert held_by_one(shared, held, "later", 100, 100) == 1
    with ExitStack() as held:
        assert held_by_one(alone, held, "greedy", 100, 100) == 90
        assert held_by_one(alone, held, "late", 100, 100) == 0  # control
    with ExitStack() as held:
        assert held_by_one(shared, held, "late", 100, 100) == 80  # what ended is free again
        assert held_by_one(Admission(1, shared=True), held, "one", 2) == 1


@pytest.mark.parametrize(("tenants", "admitted"), [(["a", "b"], 80), (["a", "a"], 90)])
def test_a_gateway_is_shared_where_its_keys_are_of_several_tenants(tenants: list[str], admitted: int) -> None:
    clients = [{"name": f"c{n}", "key": {"env": f"KEY_{n}"}, "tenant": t} for n, t in enumerate(tenants)]
    settings = GatewaySettings.model_validate({"clients": clients, "limits": {"in_flight": 90}})
    with ExitStack() as held:
        assert held_by_one(wiring.admission(settings), held, "a", 100) == admitted
