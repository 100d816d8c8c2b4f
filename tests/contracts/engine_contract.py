"""The contract that every implementation of serving.engines.base.Engine passes.

Subclass it in a test file of its own in this folder and say how to make the engine:

    from engine_contract import EngineContract

    class TestMyEngine(EngineContract):
        async def make_engine(self) -> Engine:
            return MyEngine(...)            # not started; at least 2 slots and a queue_limit of at least 1

Every test gets an engine of its own, started and stopped by the `rec` fixture. What may differ is a class
attribute: `prompt` (TEXT that the model goes on with for at least `long_tokens` tokens under greedy
sampling), `chat` (a user's words), `long_tokens` (an answer long enough to be caught running),
`short_tokens`, `timeout_s` (of each wait), `too_long` (TEXT longer than the context, None where the engine
cannot know), `utf8_prompt` (TEXT whose answer has multi-byte characters), `counts_tokens` (False for engines
that count deltas), `counts_prefill` (False where prompt tokens are unknown before the first token). Override
`work()` for anything else. A class may be marked `pytest.mark.looptime` if the engine keeps to the loop's
clock.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from serving.engines.base import Engine, EngineInfo, EngineRefused
from serving.openai_api.tools import REQUIRED, Function, Tools
from tidegate.routing.domain import (
    AttemptKey,
    Cause,
    Failure,
    Finish,
    FinishReason,
    InputKind,
    Message,
    Role,
    Sampling,
    SequenceOutput,
    Unit,
    Work,
)
from tidegate.routing.domain.work import EMBEDDINGS, JSON_SCHEMA
from tidegate.routing.embedding import pack_texts, unpack_vectors
from tidegate.routing.prefix import canonical_bytes

CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Lima"]}}, "required": ["city"]}
FUNCTIONS = (Function("weather", "tells the weather", CITY), Function("clock", "tells the time", CITY))


class Recorder:
    """Consumes an engine's steps and keeps each sequence's outputs in order."""

    def __init__(self, engine: Engine, info: EngineInfo, timeout_s: float) -> None:
        self.engine = engine
        self.info = info
        self.outputs: dict[AttemptKey, list[SequenceOutput]] = {}
        self.ended = False
        self._timeout_s = timeout_s
        self._changed = asyncio.Condition()
        self._task = asyncio.create_task(self._consume())

    async def _consume(self) -> None:
        async for batch in self.engine.steps():
            for output in batch.outputs:
                self.outputs.setdefault(output.key, []).append(output)
            async with self._changed:
                self._changed.notify_all()
        self.ended = True
        async with self._changed:
            self._changed.notify_all()

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Waits until outputs make `predicate` true."""
        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(predicate), self._timeout_s)

    async def until_load(self, predicate: Callable[[], bool]) -> None:
        """Waits until the load, which is not notified, makes `predicate` true."""
        async with asyncio.timeout(self._timeout_s):
            while not predicate():
                await asyncio.sleep(0.005)

    async def finish(self, key: AttemptKey) -> Finish:
        await self.until(lambda: self.finish_of(key) is not None)
        finish = self.finish_of(key)
        assert finish is not None
        return finish

    def finish_of(self, key: AttemptKey) -> Finish | None:
        outputs = self.outputs.get(key)
        return outputs[-1].finish if outputs else None

    def count(self, key: AttemptKey) -> int:
        return sum(output.count for output in self.outputs.get(key, []))

    def text(self, key: AttemptKey) -> str:
        return "".join(output.text for output in self.outputs.get(key, []))

    def token_ids(self, key: AttemptKey) -> tuple[int, ...]:
        return tuple(token for output in self.outputs.get(key, []) for token in output.token_ids)

    async def close(self) -> None:
        await self.engine.stop(0.0)
        await asyncio.wait([self._task], timeout=2.0)
        self._task.cancel()
        (result,) = await asyncio.gather(self._task, return_exceptions=True)
        if isinstance(result, Exception):
            raise result


def assert_contiguous(outputs: list[SequenceOutput], start: int = 0) -> None:
    """Indexes without gap or overlap, one first_token where the first count is, one finish at the end."""
    index = start
    for output in outputs:
        assert output.first_index == index
        index += output.count
        assert not output.token_ids or len(output.token_ids) == output.count
    counted = [output for output in outputs if output.count]
    stamped = [output for output in outputs if output.first_token is not None]
    assert stamped == counted[:1]
    assert [output.finish is not None for output in outputs] == [False] * (len(outputs) - 1) + [True]


class EngineContract:
    prompt = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16"
    chat = "Count from one to one hundred, and then back again."
    utf8_prompt = "Repeat: 你好，世界 🌊 żółć 你好，世界 🌊 żółć 你好，世界 🌊"
    long_tokens = 400
    short_tokens = 12
    timeout_s = 30.0
    too_long: str | None = "word " * 200_000
    counts_tokens = True
    counts_prefill = True

    _numbers = itertools.count(1)

    async def make_engine(self) -> Engine:
        raise AssertionError("a contract's subclass makes the engine")

    @pytest.fixture
    async def rec(self) -> AsyncIterator[Recorder]:
        engine = await self.make_engine()
        info = await engine.start()
        recorder = Recorder(engine, info, self.timeout_s)
        yield recorder
        await recorder.close()

    def work(
        self,
        info: EngineInfo,
        *,
        text: str | None = None,
        chat: str | None = None,
        max_tokens: int = 12,
        stop: tuple[str, ...] = (),
        digest: str | None = None,
        remaining_ms: float | None = None,
    ) -> Work:
        """One greedy attempt of a new request; TEXT unless `chat` is given."""
        if chat is not None:
            kind, data = InputKind.CHAT, canonical_bytes([Message(Role.USER, chat)])
        else:
            kind, data = InputKind.TEXT, (self.prompt if text is None else text).encode()
        return Work(
            key=AttemptKey(f"contract-{next(self._numbers)}", 1),
            tenant="default",
            variant_digest=info.variants[0].digest if digest is None else digest,
            input_kind=kind,
            input=data,
            sampling=Sampling(temperature=0.0, seed=7),
            max_tokens=max_tokens,
            stop=stop,
            remaining_ms=remaining_ms,
        )

    async def run(self, rec: Recorder, work: Work) -> Finish:
        rec.engine.submit(work)
        return await rec.finish(work.key)

    def fill(self, rec: Recorder) -> list[Work]:
        """Long work in every slot."""
        works = [self.work(rec.info, max_tokens=self.long_tokens) for _ in range(rec.info.slots)]
        for work in works:
            rec.engine.submit(work)
        return works

    # --- what it says of itself ---

    async def test_info_is_whole(self, rec: Recorder) -> None:
        info = rec.info
        assert info.variants
        assert all(variant.digest and variant.model for variant in info.variants)
        assert info.slots >= 2
        assert info.queue_limit >= 1
        assert info.build
        assert info.replay_digest
        batches = [batch for batch, _ in info.speeds.decode]
        assert batches == sorted(set(batches))
        load = rec.engine.load()
        assert load.ready
        assert (load.running, load.queued, load.progress_age_ms) == (0, 0, 0.0)

    # --- streaming ---

    async def test_max_tokens_ends_with_length_and_indexes_are_contiguous(self, rec: Recorder) -> None:
        work = self.work(rec.info, max_tokens=self.short_tokens)
        finish = await self.run(rec, work)
        assert finish.result is FinishReason.LENGTH
        assert_contiguous(rec.outputs[work.key])
        if self.counts_tokens:
            assert rec.count(work.key) == self.short_tokens
            assert finish.usage.completion_tokens == self.short_tokens
            assert all(output.unit is Unit.TOKEN for output in rec.outputs[work.key])
        assert finish.usage.prompt_tokens > 0

    async def test_tokens_come_one_step_after_another(self, rec: Recorder) -> None:
        work = self.work(rec.info, max_tokens=self.short_tokens)
        await self.run(rec, work)
        assert len([output for output in rec.outputs[work.key] if output.count]) > 1

    async def test_first_token_carries_sane_stamps(self, rec: Recorder) -> None:
        work = self.work(rec.info)
        finish = await self.run(rec, work)
        stamp = next(o.first_token for o in rec.outputs[work.key] if o.first_token is not None)
        assert stamp.queue_ms >= 0
        assert stamp.prefill_ms >= 0
        assert stamp.batch_size >= 1
        assert 0 <= stamp.cached_tokens <= stamp.prompt_tokens
        assert stamp.prompt_tokens in (0, finish.usage.prompt_tokens)

    async def test_chat_is_answered(self, rec: Recorder) -> None:
        work = self.work(rec.info, chat=self.chat)
        finish = await self.run(rec, work)
        assert isinstance(finish.result, FinishReason)
        assert_contiguous(rec.outputs[work.key])
        assert rec.text(work.key).strip()

    @pytest.mark.parametrize("choice", [REQUIRED, "weather"])
    async def test_a_forced_call_is_read_as_one(self, rec: Recorder, choice: str) -> None:
        if JSON_SCHEMA not in rec.info.variants[0].capabilities:
            pytest.skip("it does not say that it keeps to schemas")
        tools = Tools(FUNCTIONS, choice)
        asked = tools.introduce([Message(Role.USER, self.chat)])
        work = self.work(rec.info, chat=self.chat, max_tokens=400)
        work = replace(work, input=canonical_bytes(asked), format=tools.format())
        await self.run(rec, work)
        content, calls = tools.read(rec.text(work.key))
        assert content == ""
        assert calls
        assert all(json.loads(call.arguments)["city"] in ("Oslo", "Lima") for call in calls)

    async def test_several_sequences_run_at_once(self, rec: Recorder) -> None:
        works = self.fill(rec)
        await self._all_started(rec, works)
        assert all(rec.finish_of(work.key) is None for work in works)
        for work in works:
            rec.engine.cancel(work.key)

    async def test_more_work_than_slots_is_all_answered(self, rec: Recorder) -> None:
        total = rec.info.slots + min(rec.info.queue_limit, 3)
        works = [self.work(rec.info, max_tokens=self.short_tokens) for _ in range(total)]
        for work in works:
            rec.engine.submit(work)
        for work in works:
            assert (await rec.finish(work.key)).result is FinishReason.LENGTH
            assert_contiguous(rec.outputs[work.key])

    async def test_text_is_whole_utf8(self, rec: Recorder) -> None:
        work = self.work(rec.info, text=self.utf8_prompt, max_tokens=32)
        finish = await self.run(rec, work)
        assert isinstance(finish.result, FinishReason)
        for output in rec.outputs[work.key]:
            output.text.encode("utf-8")
            assert "�" not in output.text

    async def test_texts_are_embedded_in_order_and_unit_long(self, rec: Recorder) -> None:
        if EMBEDDINGS not in rec.info.variants[0].capabilities:
            pytest.skip("this engine does not embed")
        texts = [self.chat, self.utf8_prompt, self.chat]
        work = replace(
            self.work(rec.info, max_tokens=len(texts)), input_kind=InputKind.EMBED, input=pack_texts(texts)
        )
        finish = await self.run(rec, work)
        assert finish.result is FinishReason.STOP
        assert finish.usage.prompt_tokens > 0
        assert_contiguous(rec.outputs[work.key])
        vectors = [v for o in rec.outputs[work.key] if o.count for v in unpack_vectors(o.vectors, o.count)]
        assert len(vectors) == len(texts)
        assert [math.hypot(*vector) for vector in vectors] == pytest.approx([1.0] * 3, abs=1e-4)
        # Rounding depends on the texts beside it: 0.05 is a cosine of 0.999.
        assert math.dist(vectors[0], vectors[2]) < 0.05 < math.dist(vectors[0], vectors[1])
        empty = replace(work, key=AttemptKey("contract-no-texts", 1), input=b"{}")
        with pytest.raises(EngineRefused) as refused:
            rec.engine.submit(empty)
        assert refused.value.failure.cause is Cause.INVALID_INPUT

    # --- stop strings ---

    async def test_a_stop_string_ends_the_answer_and_never_leaks(self, rec: Recorder) -> None:
        free = self.work(rec.info, max_tokens=24)
        await self.run(rec, free)
        whole = rec.text(free.key)
        stop = whole[len(whole) // 2 : len(whole) // 2 + 5]
        assert len(stop) == 5, "the free answer is too short to cut a stop string out of"
        work = self.work(rec.info, max_tokens=24, stop=("never in an answer", stop))
        finish = await self.run(rec, work)
        assert finish.result is FinishReason.STOP
        assert rec.text(work.key) == whole[: whole.index(stop)]
        assert_contiguous(rec.outputs[work.key])

    async def test_text_held_back_for_a_stop_string_comes_at_the_end(self, rec: Recorder) -> None:
        free = self.work(rec.info, max_tokens=self.short_tokens)
        await self.run(rec, free)
        whole = rec.text(free.key)
        work = self.work(rec.info, max_tokens=self.short_tokens, stop=(whole[-3:] + "\x00 never",))
        finish = await self.run(rec, work)
        assert finish.result is FinishReason.LENGTH
        assert rec.text(work.key) == whole

    # --- cancel ---

    async def test_cancel_while_queued(self, rec: Recorder) -> None:
        running = self.fill(rec)
        await self._all_started(rec, running)
        waiting = self.work(rec.info)
        rec.engine.submit(waiting)
        assert rec.engine.load().queued == 1
        rec.engine.cancel(waiting.key)
        await rec.until_load(lambda: rec.engine.load().queued == 0)
        for work in running:
            rec.engine.cancel(work.key)
        last = self.work(rec.info)
        await self.run(rec, last)
        assert waiting.key not in rec.outputs

    async def test_cancel_before_the_first_token(self, rec: Recorder) -> None:
        work = self.work(rec.info, max_tokens=self.long_tokens)
        rec.engine.submit(work)
        rec.engine.cancel(work.key)
        await self._assert_idle(rec)
        await self.run(rec, self.work(rec.info))
        assert work.key not in rec.outputs

    async def test_cancel_mid_stream(self, rec: Recorder) -> None:
        work = self.work(rec.info, max_tokens=self.long_tokens)
        rec.engine.submit(work)
        await rec.until(lambda: rec.count(work.key) >= 3)
        rec.engine.cancel(work.key)
        seen = len(rec.outputs[work.key])
        await self._assert_idle(rec)
        await self.run(rec, self.work(rec.info))
        assert len(rec.outputs[work.key]) == seen
        assert rec.finish_of(work.key) is None

    async def test_cancelled_slots_are_used_again(self, rec: Recorder) -> None:
        for _ in range(3):
            works = self.fill(rec)
            await self._all_started(rec, works)
            for work in works:
                rec.engine.cancel(work.key)
        work = self.work(rec.info, max_tokens=self.short_tokens)
        finish = await self.run(rec, work)
        assert finish.result is FinishReason.LENGTH
        assert_contiguous(rec.outputs[work.key])

    async def test_cancel_of_an_unknown_key_is_ignored(self, rec: Recorder) -> None:
        rec.engine.cancel(AttemptKey("nobody", 1))
        assert isinstance((await self.run(rec, self.work(rec.info))).result, FinishReason)

    # --- refusals ---

    async def test_an_unknown_variant_is_refused(self, rec: Recorder) -> None:
        with pytest.raises(EngineRefused) as refused:
            rec.engine.submit(self.work(rec.info, digest="not-served"))
        assert refused.value.failure.cause is Cause.UNKNOWN_VARIANT

    async def test_a_malformed_chat_is_invalid_input(self, rec: Recorder) -> None:
        work = self.work(rec.info, chat=self.chat)
        broken = Work(
            key=work.key,
            tenant=work.tenant,
            variant_digest=work.variant_digest,
            input_kind=InputKind.CHAT,
            input=b'{"not": "a message"}\n',
            sampling=work.sampling,
            max_tokens=4,
        )
        await self._assert_invalid(rec, broken)

    async def test_an_input_beyond_the_context_is_told_apart(self, rec: Recorder) -> None:
        if self.too_long is None:
            pytest.skip("this engine leaves the check to the server behind it")
        await self._assert_invalid(rec, self.work(rec.info, text=self.too_long), Cause.CONTEXT_LENGTH)

    async def test_overload_is_refused_at_once_and_the_rest_goes_on(self, rec: Recorder) -> None:
        running = self.fill(rec)
        await self._all_started(rec, running)
        waiting = [self.work(rec.info, max_tokens=4) for _ in range(rec.info.queue_limit)]
        for work in waiting:
            rec.engine.submit(work)
        with pytest.raises(EngineRefused) as refused:
            rec.engine.submit(self.work(rec.info))
        assert refused.value.failure.cause is Cause.OVERLOADED
        for work in running:
            rec.engine.cancel(work.key)
        for work in waiting:
            assert isinstance((await rec.finish(work.key)).result, FinishReason)

    # --- load and end ---

    async def test_load_counts_what_runs_and_waits(self, rec: Recorder) -> None:
        running = self.fill(rec)
        await self._all_started(rec, running)
        waiting = self.work(rec.info)
        rec.engine.submit(waiting)
        load = rec.engine.load()
        assert (load.running, load.queued) == (rec.info.slots, 1)
        if self.counts_prefill:
            assert load.pending_prefill_tokens > 0
        assert load.pending_decode_tokens > 0
        assert load.progress_age_ms < self.timeout_s * 1000
        for work in (*running, waiting):
            rec.engine.cancel(work.key)
        await self._assert_idle(rec)
        load = rec.engine.load()
        assert (load.pending_prefill_tokens, load.pending_decode_tokens) == (0, 0)

    async def test_stop_is_bounded_and_ends_the_steps(self, rec: Recorder) -> None:
        running = self.fill(rec)
        await self._all_started(rec, running)
        async with asyncio.timeout(0.2 + 1.0):
            await rec.engine.stop(0.2)
        await rec.until(lambda: rec.ended)
        for work in running:
            finish = rec.finish_of(work.key)
            assert finish is not None
            assert isinstance(finish.result, Failure)
        with pytest.raises(EngineRefused):
            rec.engine.submit(self.work(rec.info))

    # --- helpers ---

    async def _all_started(self, rec: Recorder, works: list[Work]) -> None:
        await rec.until(lambda: all(rec.count(work.key) > 0 for work in works))

    async def _assert_idle(self, rec: Recorder) -> None:
        await rec.until_load(lambda: (rec.engine.load().running, rec.engine.load().queued) == (0, 0))

    async def _assert_invalid(self, rec: Recorder, work: Work, cause: Cause = Cause.INVALID_INPUT) -> None:
        """Refused at once, or failed before any token: both are allowed."""
        result: Failure | FinishReason
        try:
            rec.engine.submit(work)
            result = (await rec.finish(work.key)).result
        except EngineRefused as refused:
            result = refused.failure
        assert isinstance(result, Failure)
        assert result.cause is cause
        assert rec.count(work.key) == 0
        assert isinstance((await self.run(rec, self.work(rec.info))).result, FinishReason)
