"""The engine's answers: streams, stamps, usage, failures, cancel, its queue and its end."""

from __future__ import annotations

import asyncio
import logging

import pytest
from aiohttp import web
from openai_http_rig import Rig, running, work
from openai_stub import DONE, Reply, Script, Stub, delta, finish, status, three_words, usage

from serving.engines.base import EngineRefused
from tidegate.routing.domain import Cause, Failure, Finish, FinishReason, ReplayClass, Unit, Usage, Work


def hold(stub: Stub) -> Script:
    """One word, then silence until the stub is released."""

    async def answer(request: web.Request, reply: Reply) -> web.StreamResponse:
        await reply.words("one ")
        await stub.release.wait()
        await reply.send(finish(), DONE)
        return await reply.end()

    return answer


def contiguous(rig: Rig, given: Work) -> bool:
    index = 0
    for output in rig.outputs[given.key]:
        if output.first_index != index or output.unit is not Unit.DELTA:
            return False
        index += output.count
    return True


# --- answers ---


async def test_an_answer_streams_with_stamps_and_the_servers_usage(stub: Stub) -> None:
    async def answer(request: web.Request, reply: Reply) -> web.StreamResponse:
        for word in ("one ", "two ", "three"):
            await reply.words(word)
            await asyncio.sleep(0.01)
        await reply.send(finish(), usage(9, 3, 4), DONE)
        return await reply.end()

    stub.script = answer
    async with running(stub) as rig:
        given = work()
        assert await rig.run(given) == Finish(FinishReason.STOP, Usage(9, 3, 4))
        assert rig.text(given) == "one two three"
        assert rig.count(given) == 3
        assert contiguous(rig, given)
        stamp = rig.outputs[given.key][0].first_token
        assert stamp is not None
        assert stamp.prompt_tokens == len(given.input) // 4
        assert stamp.prefill_ms > 0
        assert stamp.batch_size == 1
    assert stub.seen[0].body["messages"] == [{"role": "user", "content": "secret prompt"}]
    assert stub.seen[0].body["model"] == "m"


async def test_without_usage_the_deltas_and_bytes_are_counted(stub: Stub) -> None:
    async def answer(request: web.Request, reply: Reply) -> web.StreamResponse:
        await reply.words("a", "b")
        await reply.send(finish("length"), DONE)
        return await reply.end()

    stub.script = answer
    async with running(stub, include_usage=False) as rig:
        given = work()
        done = await rig.run(given)
        assert done.result is FinishReason.LENGTH
        assert done.usage == Usage(len(given.input) // 4, 2, 0)
    assert "stream_options" not in stub.seen[0].body


async def test_usage_that_comes_with_the_first_delta_is_in_its_stamp(stub: Stub) -> None:
    async def answer(request: web.Request, reply: Reply) -> web.StreamResponse:
        await reply.send(
            {**delta("a"), "usage": {"prompt_tokens": 77, "completion_tokens": 1}}, finish(), DONE
        )
        return await reply.end()

    stub.script = answer
    async with running(stub) as rig:
        given = work()
        await rig.run(given)
        stamp = rig.outputs[given.key][0].first_token
        assert stamp is not None
        assert stamp.prompt_tokens == 77


async def test_an_end_without_done_is_an_end(stub: Stub) -> None:
    async def answer(request: web.Request, reply: Reply) -> web.StreamResponse:
        await reply.words("a")
        await reply.send(finish())
        return await reply.end()

    stub.script = answer
    async with running(stub) as rig:
        assert (await rig.run(work())).result is FinishReason.STOP


async def test_a_server_that_never_ends_its_stream_is_not_waited_for(stub: Stub) -> None:
    async def answer(request: web.Request, reply: Reply) -> web.StreamResponse:
        await reply.words("a")
        await reply.send(finish())
        await stub.release.wait()
        return await reply.end()

    stub.script = answer
    async with running(stub) as rig:
        assert (await rig.run(work())).result is FinishReason.STOP


async def test_an_empty_answer_has_no_first_token(stub: Stub) -> None:
    async def answer(request: web.Request, reply: Reply) -> web.StreamResponse:
        await reply.send(finish(), DONE)
        return await reply.end()

    stub.script = answer
    async with running(stub) as rig:
        given = work()
        assert (await rig.run(given)).result is FinishReason.STOP
        assert [o.first_token for o in rig.outputs[given.key]] == [None]


async def test_connections_are_used_again(stub: Stub) -> None:
    async with running(stub) as rig:
        for _ in range(3):
            await rig.run(work())
            await asyncio.sleep(0.01)
    assert len({seen.peer for seen in stub.seen}) < 3


# --- failures ---


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (400, Cause.INVALID_INPUT),
        (401, Cause.UPSTREAM),
        (404, Cause.UPSTREAM),
        (413, Cause.INVALID_INPUT),
        (422, Cause.INVALID_INPUT),
        (429, Cause.OVERLOADED),
        (500, Cause.UPSTREAM),
        (503, Cause.OVERLOADED),
    ],
)
async def test_statuses_are_typed(stub: Stub, code: int, cause: Cause) -> None:
    stub.script = status(code, {"message": "your secret prompt is bad"})
    async with running(stub) as rig:
        assert await rig.cause(work()) is cause
        stub.script = three_words
        assert (await rig.run(work())).result is FinishReason.STOP


async def test_an_error_in_the_middle_ends_the_sequence_once(stub: Stub) -> None:
    async def answer(request: web.Request, reply: Reply) -> web.StreamResponse:
        await reply.words("a")
        await reply.send({"error": {"message": "secret prompt", "code": 500}}, DONE)
        return await reply.end()

    stub.script = answer
    async with running(stub) as rig:
        given = work()
        assert await rig.cause(given) is Cause.UPSTREAM
        assert rig.text(given) == "a"
        assert sum(o.finish is not None for o in rig.outputs[given.key]) == 1


@pytest.mark.parametrize("garbage", [b"data: {nonsense\n\n", b"data: \xff\n\n", b"data: [1]\n\n"])
async def test_garbage_is_an_upstream_failure(stub: Stub, garbage: bytes) -> None:
    async def answer(request: web.Request, reply: Reply) -> web.StreamResponse:
        await reply.words("a")
        await reply.raw(garbage)
        return await reply.end()

    stub.script = answer
    async with running(stub) as rig:
        assert await rig.cause(work()) is Cause.UPSTREAM


@pytest.mark.parametrize("last", [[DONE], []], ids=["done", "end of stream"])
async def test_an_end_without_a_finish_reason_is_a_failure(stub: Stub, last: list[str]) -> None:
    """llama_cpp.server sends [DONE] when a second request cuts the first: that is no answer."""

    async def answer(request: web.Request, reply: Reply) -> web.StreamResponse:
        await reply.words("a")
        await reply.send(*last)
        return await reply.end()

    stub.script = answer
    async with running(stub) as rig:
        failure = await rig.failure(work())
        assert failure.cause is Cause.UPSTREAM
        assert "finish reason" in failure.detail


async def test_a_cut_connection_is_an_upstream_failure_and_passes(stub: Stub) -> None:
    async def answer(request: web.Request, reply: Reply) -> web.StreamResponse:
        await reply.words("a")
        await asyncio.sleep(0.01)
        reply.cut()
        return await reply.end()

    stub.script = answer
    async with running(stub) as rig:
        assert await rig.cause(work()) is Cause.UPSTREAM
        stub.script = three_words
        await rig.until(lambda: rig.engine.load().ready)
        assert (await rig.run(work())).result is FinishReason.STOP


@pytest.mark.parametrize(("times", "answered"), [(1, True), (2, False)])
async def test_a_connection_that_ends_before_the_answer_is_tried_again_once(
    stub: Stub, times: int, answered: bool
) -> None:
    """An idle connection may be closed by the server just as the engine uses it again."""

    async def answer(request: web.Request, reply: Reply) -> web.StreamResponse:
        if len(stub.seen) <= times:
            reply.cut()
            raise ConnectionError
        return await three_words(request, reply)

    stub.script = answer
    async with running(stub) as rig:
        result = (await rig.run(work())).result
        if answered:
            assert result is FinishReason.STOP
        else:
            assert isinstance(result, Failure)
            assert result.cause is Cause.UPSTREAM
        assert len(stub.seen) == 2


async def test_a_defect_ends_its_sequence_and_nothing_else(
    stub: Stub, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(stub, health_interval_s=30.0) as rig:
        session, rig.engine._upstream._session = rig.engine._upstream._session, None
        assert await rig.cause(work()) is Cause.INTERNAL
        rig.engine._upstream._session = session
        assert (await rig.run(work())).result is FinishReason.STOP
    assert "unexpectedly" in caplog.text


async def test_silence_before_the_first_output_is_a_hang(stub: Stub) -> None:
    async def answer(request: web.Request, reply: Reply) -> web.StreamResponse:
        await reply.raw(b": ping\n\n")
        await stub.release.wait()
        return await reply.end()

    stub.script = answer
    async with running(stub, first_delta_timeout_s=0.1) as rig:
        failure = await rig.failure(work())
        assert failure.cause is Cause.ENGINE_HUNG
        assert "first output" in failure.detail


async def test_silence_between_outputs_is_a_hang_whatever_comments_come(stub: Stub) -> None:
    async def answer(request: web.Request, reply: Reply) -> web.StreamResponse:
        await reply.words("a")
        while not stub.release.is_set():
            await reply.raw(b": ping\n\n")
            await asyncio.sleep(0.02)
        return await reply.end()

    stub.script = answer
    async with running(stub, idle_timeout_s=0.1) as rig:
        given = work()
        assert await rig.cause(given) is Cause.ENGINE_HUNG
        assert rig.text(given) == "a"
        await asyncio.wait_for(stub.gone.wait(), 2)


async def test_slow_but_steady_is_not_a_hang(stub: Stub) -> None:
    async def answer(request: web.Request, reply: Reply) -> web.StreamResponse:
        for word in "abcdef":
            await reply.words(word)
            await asyncio.sleep(0.04)
        await reply.send(finish(), DONE)
        return await reply.end()

    stub.script = answer
    async with running(stub, idle_timeout_s=0.15, first_delta_timeout_s=0.15) as rig:
        assert (await rig.run(work())).result is FinishReason.STOP


async def test_an_answer_without_end_is_cut(stub: Stub) -> None:
    async def answer(request: web.Request, reply: Reply) -> web.StreamResponse:
        while True:
            await reply.words(*("x" * 10))
            await asyncio.sleep(0)

    stub.script = answer
    async with running(stub) as rig:
        given = work(max_tokens=20)
        assert await rig.cause(given) is Cause.UPSTREAM
        assert rig.count(given) < 200


async def test_redirects_are_not_followed(stub: Stub) -> None:
    async def answer(request: web.Request, reply: Reply) -> web.StreamResponse:
        raise web.HTTPTemporaryRedirect("/v1/completions")

    stub.script = answer
    async with running(stub, api_key="sk-secret") as rig:
        failure = await rig.failure(work())
        assert failure.cause is Cause.UPSTREAM
        assert "redirect" in failure.detail
    assert [seen.path for seen in stub.seen] == ["/v1/chat/completions"]


async def test_a_deadline_ends_running_and_waiting_work(stub: Stub) -> None:
    stub.script = hold(stub)
    async with running(stub, slots=1) as rig:
        first, second = work(remaining_ms=60), work(remaining_ms=30)
        rig.engine.submit(first)
        rig.engine.submit(second)
        for given in (first, second):
            result = (await rig.finish(given)).result
            assert isinstance(result, Failure)
            assert result.cause is Cause.DEADLINE
        assert rig.engine.load().ready
    assert len(stub.seen) == 1


# --- cancel, queue, refusals ---


async def test_cancel_closes_the_upstream_connection_and_frees_the_slot(stub: Stub) -> None:
    stub.script = hold(stub)
    async with running(stub, slots=1) as rig:
        first, second = work(), work()
        rig.engine.submit(first)
        await rig.until(lambda: rig.count(first) == 1)
        rig.engine.submit(second)
        assert (rig.engine.load().running, rig.engine.load().queued) == (1, 1)
        stub.script = three_words
        rig.engine.cancel(first.key)
        assert (rig.engine.load().running, rig.engine.load().queued) == (1, 0)
        await asyncio.wait_for(stub.gone.wait(), 2)
        assert (await rig.finish(second)).result is FinishReason.STOP
        assert rig.finish_of(first) is None


async def test_cancel_before_the_server_answers_closes_the_connection(stub: Stub) -> None:
    async def answer(request: web.Request, reply: Reply) -> web.StreamResponse:
        await stub.release.wait()
        return await reply.end()

    stub.script = answer
    async with running(stub) as rig:
        given = work()
        rig.engine.submit(given)
        await rig.until(lambda: bool(stub.seen))
        rig.engine.cancel(given.key)
        await asyncio.wait_for(stub.gone.wait(), 2)
        assert given.key not in rig.outputs


async def test_the_queue_is_bounded_and_ordered_by_priority(stub: Stub) -> None:
    stub.script = hold(stub)
    async with running(stub, slots=1) as rig:
        first, low, high = work(), work(), work(priority=5)
        for given in (first, low, high):
            rig.engine.submit(given)
        with pytest.raises(EngineRefused) as refused:
            rig.engine.submit(work())
        assert refused.value.failure.cause is Cause.OVERLOADED
        stub.release.set()
        await rig.finish(low)
        assert list(rig.outputs) == [first.key, high.key, low.key]
        stamp = rig.outputs[low.key][0].first_token
        assert stamp is not None
        assert stamp.queue_ms > 0


async def test_what_it_cannot_do_is_refused(stub: Stub) -> None:
    async with running(stub) as rig:
        given = work()
        rig.engine.submit(given)
        for bad, cause in (
            (given, Cause.FENCED),
            (work(variant_digest="other"), Cause.UNKNOWN_VARIANT),
            (work(replay_token_ids=(1, 2)), Cause.INVALID_INPUT),
            (work(start_index=3), Cause.INVALID_INPUT),
            (work(input=b"not canonical"), Cause.INVALID_INPUT),
            (work("x" * 300_000), Cause.CONTEXT_LENGTH),
        ):
            with pytest.raises(EngineRefused) as refused:
                rig.engine.submit(bad)
            assert refused.value.failure.cause is cause


async def test_replay_by_text_goes_on_at_its_index(stub: Stub) -> None:
    async with running(stub, replay_class=ReplayClass.TEXT) as rig:
        given = work(start_index=3)
        await rig.run(given)
        assert rig.outputs[given.key][0].first_index == 3


async def test_stop_lets_work_finish_inside_the_grace_and_ends_the_rest(stub: Stub) -> None:
    stub.script = hold(stub)
    async with running(stub, slots=1) as rig:
        first, second = work(), work()
        rig.engine.submit(first)
        rig.engine.submit(second)
        await rig.until(lambda: rig.count(first) == 1)
        stopping = asyncio.create_task(rig.engine.stop(0.5))
        await asyncio.sleep(0)
        assert not rig.engine.load().ready
        with pytest.raises(EngineRefused) as refused:
            rig.engine.submit(work())
        assert refused.value.failure.cause is Cause.DRAINING
        stub.release.set()
        await stopping
        assert (await rig.finish(first)).result is FinishReason.STOP
        assert (await rig.finish(second)).result is FinishReason.STOP
        await asyncio.wait_for(rig.task, 1)


async def test_stop_cuts_what_does_not_finish(stub: Stub) -> None:
    stub.script = hold(stub)
    async with running(stub, slots=1) as rig:
        first, second = work(), work()
        rig.engine.submit(first)
        rig.engine.submit(second)
        await rig.engine.stop(0.05)
        for given in (first, second):
            result = (await rig.finish(given)).result
            assert isinstance(result, Failure)
            assert result.cause is Cause.DRAINING


async def test_no_prompt_or_key_is_logged(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with running(stub, api_key="sk-hidden") as rig:
        await rig.run(work())
        stub.script = status(500, {"message": "secret prompt"})
        await rig.run(work())
        await stub.down()
        await rig.run(work())
    assert stub.seen[0].headers["Authorization"] == "Bearer sk-hidden"
    assert "sk-hidden" not in caplog.text
    assert "secret" not in caplog.text
    assert "upstream" in caplog.text
