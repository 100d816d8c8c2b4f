"""Data classes, sessions, explanations, and what a finished request leaves behind."""

from __future__ import annotations

import asyncio
import logging
import math
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from dispatch_rig import Rig, Script, answer, ask, end, fails, token
from gateway_fakes import DIGEST

from gateway.dispatch.caller import Client
from tidegate.routing.domain import (
    Accepted,
    Analysis,
    AttemptKey,
    Budget,
    Cause,
    Code,
    Finish,
    Finished,
    FinishReason,
    FirstToken,
    Message,
    NodeLoad,
    Role,
    RouteQuery,
    SequenceOutput,
    ServeError,
    SessionHint,
    Tier,
)
from tidegate.routing.margin import STEP
from tidegate.routing.plan import Plan, Refusal
from tidegate.routing.prediction import Prediction

pytestmark = pytest.mark.looptime
SECRET = "the patient's name is Miller"


class Instead:
    """All of an object, but for these methods. Compiled objects take no other methods themselves."""

    def __init__(self, real: object, **methods: Any) -> None:
        self._real = real
        self.__dict__ |= methods

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


async def refused(rig: Rig, **changes: object) -> ServeError:
    with pytest.raises(ServeError) as caught:
        await rig.run(ask(**changes))
    return caught.value


async def test_a_restricted_request_never_reaches_the_cloud() -> None:
    rig = Rig(n1=[fails(Cause.NODE_LOST)], n3=[answer()])
    error = await refused(rig, data_class="restricted")
    assert rig.tried == ["n1"]
    assert error.code is Code.UNAVAILABLE  # the edge's failure; there was nobody else to ask
    rig = Rig(n3=[answer()])
    error = await refused(rig, data_class="restricted")
    assert (error.code, error.reason, rig.tried) == (Code.FAILED_PRECONDITION, "DATA_CLASS", [])
    rig = Rig(n3=[answer()])
    await rig.run(ask(data_class="internal"))  # the positive control
    assert rig.tried == ["n3"]


async def test_a_key_sets_the_floor_and_a_request_may_only_raise_it() -> None:
    floor = Client(class_floor="restricted")
    for asked in ("", "public", "internal", "restricted"):
        rig = Rig(n3=[answer()])
        with pytest.raises(ServeError):
            await rig.run(ask(data_class=asked), floor)
        assert rig.tried == []


@pytest.mark.parametrize(
    ("asked", "floor", "told"),
    [("", "", "public"), ("internal", "", "internal"), ("", "internal", "internal")],
)
async def test_a_node_is_told_the_class_that_holds(asked: str, floor: str, told: str) -> None:
    rig = Rig(n1=[answer()])
    await rig.run(ask(data_class=asked), Client(class_floor=floor))
    assert [work.data_class for _, work in rig.nodes.works] == [told]


async def test_a_session_keeps_its_strictest_class_even_when_that_turn_failed() -> None:
    rig = Rig(n3=[answer(1), answer(1)])
    await rig.run(ask("a", session_id="chat"))
    await refused(rig, request_id="b", session_id="chat", data_class="restricted")
    error = await refused(rig, request_id="c", session_id="chat")
    assert error.reason == "DATA_CLASS"
    await rig.run(ask("d", session_id="another"))
    assert len(rig.tried) == 2


async def test_a_looser_turn_that_ends_later_does_not_loosen_its_session() -> None:
    rig = Rig(n1=[answer(5), answer(1)])
    loose = asyncio.create_task(rig.run(ask("a", session_id="chat")))
    await asyncio.sleep(0.2)
    await rig.run(ask("b", session_id="chat", data_class="restricted"))
    await loose
    assert rig.sessions.data_class(rig.sessions.name("default", "chat")) == "restricted"


async def test_a_finished_turn_says_where_its_prefix_is_warm() -> None:
    rig = Rig(n1=[answer(3)])
    await rig.run(ask(session_id="chat"))
    name = rig.sessions.name("default", "chat")
    boot_id = rig.fleet.snapshot().by_id["n1"].announcement.boot_id
    assert rig.sessions.hint(name) == SessionHint("n1", DIGEST, 9 + 3, boot_id, blocks=1, fresh=True)


@pytest.mark.parametrize(
    ("asked", "judged"), [({}, False), ({"min_p_good": 0.1}, True), ({"explain": True}, True)]
)
async def test_a_prompt_is_judged_only_for_who_asks(asked: dict[str, Any], judged: bool) -> None:
    rig = Rig(n1=[answer(1)], n2=[])
    accepted = (await rig.run(ask(**asked)))[0]
    assert isinstance(accepted, Accepted)
    assert (accepted.route.p_good is not None, rig.analyzer.judged > 0) == (judged, judged)
    route, _ = rig.dispatcher.route(ask("told", **asked), Client())
    assert (route.p_good is not None) == bool(asked.get("min_p_good"))


async def test_every_decision_on_limited_data_is_audited(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gateway.audit")
    rig = Rig(n1=[fails(Cause.DRAINING)], n3=[answer()])
    await refused(rig, data_class="restricted")
    await rig.run(ask("r2"))
    lines = [(r.request_id, r.decision, r.node, r.tier) for r in caplog.records if r.name == "gateway.audit"]  # type: ignore[attr-defined]
    assert lines == [("r1", "routed", "name-n1", "edge"), ("r1", "refused", "", "")]


async def test_explaining_decides_and_does_nothing_else() -> None:
    rig = Rig(n1=[answer()], n3=[answer()])
    decision = rig.dispatcher.explain(ask(session_id="chat", data_class="restricted"), Client())
    assert isinstance(decision.result, Plan)
    assert decision.result.first.node.node_id == "n1"
    assert rig.tried == []
    assert rig.admission.in_flight == 0
    assert rig.sessions.data_class(rig.sessions.name("default", "chat")) == ""
    assert isinstance(rig.dispatcher.explain(ask(model="unknown"), Client()).result, Refusal)
    with pytest.raises(ServeError):
        rig.dispatcher.explain(ask(data_class="nonsense"), Client())


async def test_reasons_come_on_request() -> None:
    accepted = (await Rig(n1=[answer(1)], n2=[]).run(ask(explain=True)))[0]
    assert isinstance(accepted, Accepted)
    assert accepted.explanation is not None
    assert [c.route.node_id for c in accepted.explanation.candidates] == ["n1", "n2"]


async def test_the_log_has_one_line_per_request_and_no_prompt_or_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    rig = Rig(n1=[answer(3), fails(Cause.ENGINE_CRASHED, tokens=1)])
    private = (Message(Role.USER, SECRET),)
    await rig.run(ask("a", messages=private, session_id="sess-77"))
    await refused(rig, request_id="b", messages=private)
    await refused(rig, request_id="c", messages=private, data_class="nonsense")
    lines = [r for r in caplog.records if r.name == "gateway.requests"]
    assert [(r.request_id, r.code, r.reason) for r in lines] == [  # type: ignore[attr-defined]
        ("a", "ok", ""),
        ("b", "unavailable", "ENGINE_CRASHED"),
        ("c", "invalid_argument", "UNKNOWN_DATA_CLASS"),
    ]
    everything = " ".join(str(vars(r)) for r in caplog.records)
    for private_text in (SECRET, "Miller", "t0 ", "sess-77", "unguessable-token"):
        assert private_text not in everything
    assert "name-n1" in everything  # the control: other facts are there
    assert SECRET.encode() not in rig.metrics.exposition()


def predicted(rig: Rig) -> Prediction:
    """What n1 is expected to take now."""
    result = rig.dispatcher.explain(ask(), Client()).result
    assert isinstance(result, Plan)
    return next(c.prediction for c in result.choices if c.node.node_id == "n1")


async def test_attempts_teach_the_speeds_of_their_node() -> None:
    rig = Rig(n1=[answer(8, every_s=1.0)])
    before = predicted(rig)
    await rig.run(ask())
    after = predicted(rig)
    assert after.tpot_ms > 2 * before.tpot_ms
    assert after.ttft_ms > 2 * before.ttft_ms


async def test_a_slow_reader_does_not_make_its_node_look_slow() -> None:
    rig = Rig(n1=[answer(8, every_s=0.02)])
    before = predicted(rig)
    async for _ in rig.dispatcher.generate(ask(), Client()):
        await asyncio.sleep(2.0)
    assert predicted(rig).tpot_ms == before.tpot_ms


async def test_refused_work_teaches_nothing() -> None:
    rig = Rig(n1=[fails(Cause.OVERLOADED, after_s=5.0)], n2=[answer(1)])
    before = predicted(rig)
    await rig.run(ask())
    assert predicted(rig).prefill_ms == before.prefill_ms


async def test_a_first_token_teaches_before_its_answer_ends_and_only_once() -> None:
    rig = Rig(n1=[answer(50, every_s=0.2)])
    before = predicted(rig)
    asked = asyncio.create_task(rig.run(ask()))
    await asyncio.sleep(1.0)
    assert predicted(rig).ttft_ms == before.ttft_ms
    rig.facts.look(asyncio.get_running_loop().time())
    known = predicted(rig).ttft_ms
    assert known > before.ttft_ms
    await asked
    assert predicted(rig).ttft_ms == known
    assert rig.count("tidegate_ttft_p95_kept_total", tier="edge", kept="no") == 1


async def test_a_node_ten_times_slower_than_it_was_loses_its_traffic_within_five_seconds() -> None:
    """Four requests a second; n1 is the cheapest and kept to 100 ms until second 10."""
    loop = asyncio.get_running_loop()
    rig = Rig(in_flight=200, n1=[answer(4, 0.1)] * 40 + [answer(4, 1.0)] * 400, n2=[answer(4, 0.15)] * 400)
    began_s, sent_s = loop.time(), []

    async def look() -> None:
        while True:
            await asyncio.sleep(0.25)
            rig.facts.look(loop.time())

    async def one(number: int) -> None:
        before = len(rig.nodes.works)
        task = asyncio.create_task(rig.run(ask(f"r{number}", budget=Budget(ttft_ms=400.0))))
        await asyncio.sleep(0)
        if before < len(rig.nodes.works) and rig.nodes.works[before][0] == "n1":
            sent_s.append(loop.time() - began_s)
        await task

    looking = asyncio.create_task(look())
    async with asyncio.TaskGroup() as group:
        for number in range(120):
            group.create_task(one(number))
            await asyncio.sleep(0.25)
    looking.cancel()
    assert len(sent_s) >= 40  # the control: until then it got all of them
    assert max(sent_s) < 10.0 + 5.0


async def test_metrics_name_tokens_and_times() -> None:
    rig = Rig(n1=[answer(3)])
    finished = (await rig.run(ask()))[-1]
    assert isinstance(finished, Finished)
    assert rig.count("tidegate_tokens_total", tier="edge", kind="completion") == 3
    assert rig.count("tidegate_tokens_total", tier="edge", kind="cached") == 2
    assert rig.count("tidegate_ttft_seconds_sum", tier="edge") == pytest.approx(0.1)


async def test_a_token_and_the_end_in_one_message_count_once() -> None:
    rig = Rig(n1=[[(0.1, token(0, finish=Finish(FinishReason.STOP)))]])
    finished = (await rig.run(ask()))[-1]
    assert isinstance(finished, Finished)
    assert finished.usage.completion_tokens == 1


def stamped(after_s: float, tokens: int = 1, **stamps: float) -> Script:
    """An answer whose node says of its first token what it likes."""
    told = replace(FirstToken(3.0, 4.0, 0, batch_size=1, prompt_tokens=9), **stamps)  # type: ignore[arg-type]

    def first(key: AttemptKey) -> SequenceOutput:
        return SequenceOutput(key, 0, 1, (0,), "t0 ", first_token=told)

    more = [(0.05, token(index)) for index in range(1, tokens)]
    return [(after_s, first), *more, (0.0, end(FinishReason.STOP, tokens))]


@pytest.mark.parametrize(("asleep", "wake_ms"), [(True, 4000.0), (True, 0.0), (False, 4000.0)])
async def test_a_model_that_had_to_be_loaded_teaches_nothing_of_the_nodes_speed(
    asleep: bool, wake_ms: float
) -> None:
    """The controls: the same wait without the stamp, and the stamp of a node that did not sleep."""
    rig = Rig(n1=[stamped(4.05, wake_ms=wake_ms)] * 40)
    node = rig.fleet.snapshot().by_id["n1"]
    if asleep:
        rig.fleet.heartbeat("n1", NodeLoad(wake_ms=4000.0))
    query = RouteQuery("auto", Analysis(9, lambda: 0.0), 8, Budget(), 0.5, 0.0)
    before = rig.latency.predict(node, node.announcement.variants[0], query).ttft_ms
    for number in range(40):
        (*_, finished) = await rig.run(ask(f"r{number}"))
        assert isinstance(finished, Finished)
        assert finished.timings.ttft_ms == pytest.approx(4050.0, abs=5.0)
        assert finished.timings.queue_ms == 3.0 + wake_ms
    after = rig.latency.predict(node, node.announcement.variants[0], query).ttft_ms
    if asleep and wake_ms:
        assert after < 5.0 * before
    else:
        assert after > 5.0 * before


@pytest.mark.parametrize("asleep", [True, False])
@pytest.mark.parametrize(
    "lie",
    [
        {"queue_ms": 0.0, "prefill_ms": 0.0, "wake_ms": 3.6e6},
        {"queue_ms": 1e12},
        {"prefill_ms": 1e12},
        {"prefill_ms": math.nan, "queue_ms": math.inf, "wake_ms": -math.inf},
        {"prompt_tokens": 2**32 - 1, "cached_tokens": 2**32 - 1},
        {"prompt_tokens": 2**32 - 1, "queue_ms": -1e12, "prefill_ms": -1e12},
        {"cached_tokens": 2**32 - 1, "batch_size": 2**32 - 1},
    ],
)
async def test_what_one_node_says_of_its_times_does_not_break_its_class(
    lie: dict[str, float], asleep: bool
) -> None:
    """n2 is of n1's class and honest: what is expected of it can be computed, and stays near what it takes
    (but for queues that n1 says it has, which do make its class look slow)."""
    rig = Rig(n1=[stamped(0.5, 4, **lie)] * 30, n2=[answer(8)] * 30)
    if asleep:
        rig.fleet.heartbeat("n1", NodeLoad(wake_ms=100.0))
    for number in range(30):
        await rig.run(ask(f"r{number}"))
    rig.nodes.scripts["n1"] = []
    for number in range(3):
        asked = asyncio.create_task(rig.run(ask(f"s{number}")))
        await asyncio.sleep(0.3)
        rig.facts.look(asyncio.get_running_loop().time())
        await asked
    assert rig.tried.count("n1") >= 19
    node = rig.fleet.snapshot().by_id["n2"]
    query = RouteQuery("auto", Analysis(9, lambda: 0.0), 8, Budget(), 0.5, 0.0)
    expected = rig.latency.predict(node, node.announcement.variants[0], query)
    assert 90.0 < expected.ttft_ms < (math.inf if lie.get("queue_ms") else 1000.0)
    assert math.isfinite(expected.ttft_p95_ms)


async def test_a_missed_budget_widens_the_margin_where_it_was_expected_to_be_met() -> None:
    budget = Budget(ttft_ms=2000.0)
    late = [(2.5, token(0)), (0.0, end(FinishReason.STOP, 1))]

    def largest(rig: Rig) -> float:
        return rig.facts.margins.largest(Tier.EDGE)

    rig = Rig(n1=[late, answer(1)])
    await rig.run(ask("a", budget=replace(budget, target_share=0.9)))
    assert largest(rig) == pytest.approx(math.exp(0.9 * STEP))
    await rig.run(ask("b", budget=replace(budget, target_share=0.9)))
    assert largest(rig) == pytest.approx(math.exp(0.8 * STEP))
    assert rig.facts.margins.largest(Tier.CLOUD) == 1.0
    # Nobody expected this one to be met, and that one had no budget.
    rig = Rig(n1=[late, late])
    await rig.run(ask("c", budget=Budget(ttft_ms=1.0)))
    await rig.run(ask("d"))
    assert largest(rig) == 1.0
    # A node that was lost is not what a margin helps against.
    rig = Rig(n1=[fails(Cause.NODE_LOST, after_s=3.0)], n2=[answer(1)])
    await rig.run(ask("e", budget=budget))
    assert largest(rig) == 1.0


@pytest.mark.parametrize(
    ("budget", "counts"),
    [
        (Budget(total_ms=4000.0), False),
        (Budget(tpot_ms=100.0), False),
        (Budget(ttft_ms=50.0, total_ms=4000.0), True),
        (Budget(ttft_ms=900.0, total_ms=4000.0), False),
    ],
)
@pytest.mark.parametrize("gives_up", [True, False])
async def test_what_a_slow_reader_missed_widens_no_margin(
    budget: Budget, counts: bool, gives_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a second with each event, also with the first, which comes with the first token."""
    rig = Rig(n1=[answer(8, every_s=0.2)])
    learned: list[bool] = []
    noting = Instead(rig.facts.margins, record=lambda *_, met: learned.append(met))
    monkeypatch.setattr(rig.facts, "margins", noting)

    async def read() -> None:
        async with aclosing(rig.dispatcher.generate(ask(budget=budget), Client())) as events:
            async for _ in events:
                await asyncio.sleep(1.0)

    reading = asyncio.create_task(read())
    await asyncio.sleep(6.5 if gives_up else 60.0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    # Who gives up after its first token has not missed that one, as far as is told apart.
    assert learned == ([False] if counts and not gives_up else [])


@pytest.mark.parametrize("takes_s", [0.0, 1.0])
async def test_an_answer_that_is_late_by_itself_widens_the_margin(takes_s: float) -> None:
    """The control: its reader takes less time than its node, which took too long for the total."""
    rig = Rig(n1=[answer(8, every_s=2.0)])
    async for _ in rig.dispatcher.generate(ask(budget=Budget(total_ms=9000.0)), Client()):
        await asyncio.sleep(takes_s / 2)
    assert rig.facts.margins.largest(Tier.EDGE) > 1.0


async def test_a_reader_who_gives_up_with_a_token_in_hand_was_the_slow_one() -> None:
    rig = Rig(n1=[answer(8, every_s=0.02)])
    before = predicted(rig)
    events = rig.dispatcher.generate(ask(), Client())
    for _ in range(6):
        await anext(events)
    await asyncio.sleep(60.0)
    await events.aclose()
    assert predicted(rig).tpot_ms == before.tpot_ms


@pytest.mark.parametrize(("after_s", "counts"), [(3.0, True), (0.5, False)])
async def test_who_gives_up_too_late_for_its_budget_has_missed_it(after_s: float, counts: bool) -> None:
    rig = Rig(n1=[[(10.0, token(0))]])
    asked = asyncio.create_task(rig.run(ask("a", budget=Budget(ttft_ms=2000.0, target_share=0.9))))
    await asyncio.sleep(after_s)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    assert (rig.facts.margins.largest(Tier.EDGE) > 1.0) is counts


async def test_what_an_answer_cost_is_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(n1=[fails(Cause.NODE_LOST)], n2=[answer(3)])
    with caplog.at_level(logging.INFO, logger="gateway.requests"):
        await rig.run(ask())
    (line,) = (r for r in caplog.records if r.name == "gateway.requests")
    # Of the node that answered: 2.0 per million of 9 + 3 tokens.
    assert (line.cost_per_mtoken, line.cost) == (2.0, 0.000024)  # type: ignore[attr-defined]
    assert rig.count("tidegate_cost_total", tier="edge") == pytest.approx(0.000024)


async def test_a_route_that_is_told_is_audited_where_the_class_limits_anything(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Rig(n1=[], n3=[])
    with caplog.at_level(logging.INFO, logger="gateway.audit"):
        route, decision_ms = rig.dispatcher.route(ask(data_class="restricted"), Client())
        rig.dispatcher.route(ask("r2"), Client())
        with pytest.raises(ServeError, match="no node serves this model"):
            rig.dispatcher.route(ask("r3", data_class="restricted", model="unknown"), Client())
        with pytest.raises(ServeError, match="above this gateway's limit"):
            rig.dispatcher.route(ask("r4", data_class="restricted", max_tokens=1 << 20), Client())
    assert (route.node_id, rig.tried, decision_ms) == ("n1", [], 0.0)
    lines = [(r.request_id, r.decision, r.node) for r in caplog.records if r.name == "gateway.audit"]  # type: ignore[attr-defined]
    assert lines == [("r1", "told", "name-n1"), ("r3", "refused", ""), ("r4", "refused", "")]


async def test_decisions_know_what_crowds_their_model_and_teach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(n1=[answer()], n2=[answer()])
    limits = {"auto": 1e-3}
    taught: list[tuple[str, str]] = []
    noting = Instead(
        rig.facts.crowding,
        longest_ms=limits.__getitem__,
        decided=lambda plan: taught.append((plan.query.model, plan.pick)),
    )
    monkeypatch.setattr(rig.facts, "crowding", noting)
    await rig.run(ask())
    assert (rig.tried, taught) == (["n2"], [("auto", "crowded")])


@pytest.mark.parametrize("level", [logging.WARNING, logging.INFO])
async def test_the_audit_is_complete_at_every_level_and_for_who_was_turned_away(
    caplog: pytest.LogCaptureFixture, level: int
) -> None:
    rig = Rig(n1=[answer(), answer()], in_flight=1)
    caplog.set_level(level)  # of the root, as log.level sets it
    caplog.handler.setLevel(0)
    await rig.run(ask("r1", data_class="restricted", session_id="chat"))
    with pytest.raises(ServeError, match="above this gateway's limit"):
        await rig.run(ask("r2", session_id="chat", max_tokens=1 << 20))
    running = asyncio.create_task(rig.run(ask("r3")))
    await asyncio.sleep(0)
    for name, data_class in (("r4", "restricted"), ("r5", "public"), ("r6", "unheard of")):
        with pytest.raises(ServeError, match="is full"):
            await rig.run(ask(name, data_class=data_class))
    await running
    with pytest.raises(ServeError) as late:
        await rig.run(ask("r7", data_class="restricted", remaining_ms=0.0))
    assert late.value.code is Code.DEADLINE_EXCEEDED
    lines = [(r.request_id, r.decision, r.node) for r in caplog.records if r.name == "gateway.audit"]  # type: ignore[attr-defined]
    routed = ("r1", "routed", "name-n1")
    assert lines == [routed, ("r2", "refused", ""), ("r4", "refused", ""), ("r7", "refused", "")]


async def test_refusals_are_logged_as_decisions_are(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rig = Rig(n1=[answer()], log_share=1.0)
    await rig.run(ask("r1"))
    with pytest.raises(ServeError):
        await rig.run(ask("r2", model="unknown"))
    first, second = [vars(r) for r in caplog.records if r.name == "gateway.decisions"]
    assert (first["request_id"], first["pick"], len(first["candidates"])) == ("r1", "only", 1)
    assert (second["request_id"], second["refused"], second["candidates"]) == ("r2", "MODEL_UNKNOWN", [])
