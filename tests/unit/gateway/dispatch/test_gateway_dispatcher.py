"""One request through the dispatcher: what its client sees, and when another node is tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from dispatch_rig import FLEET_SECRET, NODES, SILENT, Rig, answer, ask, end, fails, token
from gateway_fakes import VARIANT, announcement

from gateway.dispatch.errors import RETRYABLE
from gateway.dispatch.resume import ResumeTokens
from tidegate.routing.domain import (
    Accepted,
    AttemptKey,
    Budget,
    BudgetOutcome,
    Cause,
    Chunk,
    Code,
    Failure,
    Finished,
    FinishReason,
    InputKind,
    NodeLoad,
    OnMiss,
    Restarted,
    SequenceOutput,
    ServeError,
)

pytestmark = pytest.mark.looptime


def _unfinished(make: Callable[[AttemptKey], SequenceOutput], key: AttemptKey) -> SequenceOutput:
    return replace(make(key), finish=None)


async def test_an_answer_is_accepted_then_chunks_then_finished() -> None:
    rig = Rig(n1=[answer(3)], n2=[])
    accepted, *chunks, finished = await rig.run(ask())
    assert isinstance(accepted, Accepted)
    assert (accepted.route.node_id, accepted.resume_token) == (
        "n1",
        ResumeTokens(FLEET_SECRET).issue("default", "r1", "unguessable-token"),
    )
    assert accepted.explanation is None
    assert [(c.attempt_no, c.first_index, c.count, c.text) for c in chunks if isinstance(c, Chunk)] == [
        (1, 0, 1, "t0 "),
        (1, 1, 1, "t1 "),
        (1, 2, 1, "t2 "),
    ]
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.attempts, finished.budget) == (FinishReason.STOP, 1, BudgetOutcome.NONE)
    assert (finished.usage.prompt_tokens, finished.usage.completion_tokens) == (9, 3)
    assert finished.timings.ttft_ms == pytest.approx(100.0)
    assert finished.timings.tpot_ms == pytest.approx(100.0)
    assert finished.timings.total_ms == pytest.approx(300.0)
    assert (finished.timings.queue_ms, finished.timings.prefill_ms) == (3.0, 4.0)
    assert rig.count("tidegate_requests_total", tier="edge", code="ok", reason="") == 1


async def test_the_work_says_what_the_request_said() -> None:
    rig = Rig(n1=[answer(), answer()])
    await rig.run(ask(stop=("END",), priority=2, remaining_ms=5000.0, budget=Budget(ttft_ms=400.0)))
    await rig.run(ask("r2", messages=(), prompt="once upon"))
    (_, chat), (_, text) = rig.nodes.works
    assert (chat.input_kind, chat.input) == (InputKind.CHAT, b'["user","","what is a tide?"]\n')
    assert (chat.stop, chat.priority, chat.max_tokens, chat.credits) == (("END",), 2, 8, 64)
    assert (chat.remaining_ms, chat.ttft_remaining_ms) == (5000.0, 400.0)
    assert chat.key.request_id.startswith("r1.")  # clients choose ids; nodes must never confuse two of them
    assert (text.input_kind, text.input, text.remaining_ms) == (InputKind.TEXT, b"once upon", None)


@pytest.mark.parametrize("cause", sorted(RETRYABLE))
async def test_before_the_first_token_another_node_is_tried(cause: Cause) -> None:
    rig = Rig(n1=[fails(cause)], n2=[answer(2)])
    events = await rig.run(ask())
    assert rig.tried == ["n1", "n2"]
    assert [type(e) for e in events] == [Accepted, Chunk, Chunk, Finished]
    assert isinstance(events[0], Accepted)
    assert events[0].route.node_id == "n2"
    assert isinstance(events[-1], Finished)
    assert events[-1].attempts == 2
    assert [w.key.attempt_no for _, w in rig.nodes.works] == [1, 2]
    assert len({w.key.request_id for _, w in rig.nodes.works}) == 1
    assert rig.count("tidegate_attempts_total", tier="edge", outcome=cause.value) == 1


async def test_a_node_whose_link_is_gone_is_one_more_failed_attempt() -> None:
    rig = Rig(n1=[], n2=[answer(1)])
    await rig.run(ask())
    assert rig.tried == ["n1", "n2"]


@pytest.mark.parametrize(
    ("cause", "code"), [(Cause.INVALID_INPUT, Code.INVALID_ARGUMENT), (Cause.FENCED, Code.ALREADY_EXISTS)]
)
async def test_what_would_fail_anywhere_is_not_tried_again(cause: Cause, code: Code) -> None:
    rig = Rig(n1=[fails(cause)], n2=[answer()])
    with pytest.raises(ServeError) as caught:
        await rig.run(ask())
    assert (caught.value.code, caught.value.reason) == (code, cause.name)
    assert rig.tried == ["n1"]


@pytest.mark.parametrize("early_accept", [False, True])
async def test_after_a_token_nothing_is_tried_again(early_accept: bool) -> None:
    rig = Rig(n1=[fails(Cause.ENGINE_CRASHED, tokens=2)], n2=[answer()])
    with pytest.raises(ServeError) as caught:
        await rig.run(ask(early_accept=early_accept))
    assert [type(e) for e in rig.seen] == [Accepted, Chunk, Chunk]
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "ENGINE_CRASHED")
    assert caught.value.details == {"tokens": "2", "node": "name-n1"}
    assert caught.value.retry_after_ms is not None
    assert rig.tried == ["n1"]


async def test_tries_are_bounded() -> None:
    rig = Rig(n1=[fails(Cause.OVERLOADED)], n2=[fails(Cause.OVERLOADED)], n3=[fails(Cause.NODE_LOST)])
    rig.dispatcher._options = type(rig.dispatcher._options)(max_attempts=2)
    with pytest.raises(ServeError) as caught:
        await rig.run(ask())
    assert rig.tried == ["n1", "n2"]
    assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "OVERLOADED")


async def test_when_no_node_is_left_the_last_failure_is_the_answer() -> None:
    rig = Rig(n1=[fails(Cause.DRAINING)], n2=[fails(Cause.ENGINE_HUNG)])
    with pytest.raises(ServeError) as caught:
        await rig.run(ask())
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "ENGINE_HUNG")


async def test_early_accept_speaks_at_once_and_says_when_it_starts_over() -> None:
    rig = Rig(n1=[fails(Cause.ENGINE_CRASHED)], n2=[fails(Cause.NODE_LOST)], n3=[answer(1)])
    events = await rig.run(ask(early_accept=True))
    assert [type(e) for e in events] == [Accepted, Restarted, Restarted, Chunk, Finished]
    first, second = events[1], events[2]
    assert isinstance(first, Restarted)
    assert isinstance(second, Restarted)
    assert (first.attempt_no, first.cause, first.route.node_id) == (2, "ENGINE_CRASHED", "n2")
    assert (second.attempt_no, second.cause, second.route.node_id) == (3, "NODE_LOST", "n3")


async def test_text_without_a_token_is_never_silently_followed_by_another_node() -> None:
    text = end(FinishReason.STOP, text="held back")
    rig = Rig(
        n1=[[(0.1, lambda key: _unfinished(text, key)), (0.1, end(Failure(Cause.ENGINE_CRASHED)))]],
        n2=[answer(1)],
    )
    events = await rig.run(ask())
    assert [type(e) for e in events] == [Accepted, Chunk, Restarted, Chunk, Finished]


async def test_an_empty_answer_is_an_answer() -> None:
    rig = Rig(n1=[[(0.2, end(FinishReason.STOP))]])
    events = await rig.run(ask())
    assert [type(e) for e in events] == [Accepted, Finished]


async def test_the_last_chunk_may_carry_the_end() -> None:
    events = await Rig(n1=[[(0.1, token(0)), (0.1, end(FinishReason.LENGTH, 1, "tail"))]]).run(ask())
    assert [e.text for e in events if isinstance(e, Chunk)] == ["t0 ", "tail"]


@pytest.mark.parametrize(
    ("budget", "outcome"),
    [
        (Budget(ttft_ms=101.0), BudgetOutcome.MET),
        (Budget(ttft_ms=99.0), BudgetOutcome.MISSED),
        (Budget(tpot_ms=101.0, total_ms=301.0), BudgetOutcome.MET),
        (Budget(ttft_ms=101.0, total_ms=299.0), BudgetOutcome.MISSED),
        (Budget(target_share=0.9), BudgetOutcome.NONE),
    ],
)
async def test_a_budget_is_reported_met_or_missed(budget: Budget, outcome: BudgetOutcome) -> None:
    finished = (await Rig(n1=[answer(3)]).run(ask(budget=budget)))[-1]
    assert isinstance(finished, Finished)
    assert finished.budget is outcome


async def test_the_time_of_failed_attempts_counts_against_the_budget() -> None:
    rig = Rig(n1=[fails(Cause.OVERLOADED, after_s=1.0)], n2=[answer(1)])
    finished = (await rig.run(ask(budget=Budget(ttft_ms=1000.0))))[-1]
    assert isinstance(finished, Finished)
    assert finished.timings.ttft_ms == pytest.approx(1100.0)
    assert finished.budget is BudgetOutcome.MISSED
    assert rig.nodes.works[1][1].ttft_remaining_ms == 1.0  # already late: as soon as possible


async def test_a_budget_nobody_can_meet_is_refused_before_any_work() -> None:
    rig = Rig(n1=[answer()])
    with pytest.raises(ServeError) as caught:
        await rig.run(ask(budget=Budget(ttft_ms=0.01), on_miss=OnMiss.REJECT))
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert rig.tried == []
    assert (
        rig.count(
            "tidegate_requests_total", tier="none", code="resource_exhausted", reason=caught.value.reason
        )
        == 1
    )


async def test_a_silent_node_is_given_up_and_left_alone() -> None:
    rig = Rig(n1=[SILENT], n2=[answer(1)])
    finished = (await rig.run(ask()))[-1]
    assert isinstance(finished, Finished)
    assert finished.timings.ttft_ms > 20_000
    assert rig.nodes.cancelled == [rig.nodes.works[0][1].key]
    assert rig.fleet.snapshot().by_id["n1"].health.value == "stalled"


@pytest.mark.parametrize("cause", [Cause.ENGINE_CRASHED, Cause.ENGINE_HUNG, Cause.INTERNAL])
async def test_a_request_that_breaks_two_engines_is_not_shown_to_a_third(cause: Cause) -> None:
    rig = Rig(n1=[fails(cause)], n2=[fails(cause)], n3=[answer()])
    with pytest.raises(ServeError) as caught:
        await rig.run(ask())
    assert caught.value.reason == cause.name
    assert rig.tried == ["n1", "n2"]
    rig = Rig(n1=[fails(cause)], n2=[fails(Cause.OVERLOADED)], n3=[answer()])  # the control
    assert isinstance((await rig.run(ask()))[-1], Finished)


async def test_an_adapter_is_asked_only_where_it_is() -> None:
    rig = Rig(n1=[answer(1)], n2=[answer(1)])
    able = replace(VARIANT, capabilities=VARIANT.capabilities | {"adapter:red"})
    rig.fleet.register(announcement("n2", variant=able), NODES["n2"], 2)
    rig.fleet.heartbeat("n2", NodeLoad())
    rig.fleet.rtt("n2", 1.0)
    await rig.run(ask(adapter="red"))
    assert [(node, work.adapter) for node, work in rig.nodes.works] == [("n2", "red")]
    with pytest.raises(ServeError) as refused:
        await rig.run(ask("r2", adapter="blue"))
    assert refused.value.code is Code.FAILED_PRECONDITION
    assert len(rig.nodes.works) == 1
