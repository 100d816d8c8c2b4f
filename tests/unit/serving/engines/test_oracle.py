from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from serving.engines.base import EngineRefused
from serving.engines.oracle import OracleEngine, OracleSettings, oracle_length, oracle_text, oracle_tokens
from tidegate.routing.domain import (
    AttemptKey,
    Cause,
    Failure,
    Finish,
    FinishReason,
    InputKind,
    Sampling,
    SequenceOutput,
    Work,
)
from tidegate.routing.prefix import prefix_names

pytestmark = pytest.mark.looptime

SETTINGS = OracleSettings(
    slots=2,
    queue_limit=2,
    prefill_tokens_per_s=1000.0,
    decode=((1, 10.0), (2, 5.0)),
    prefill_chunk_tokens=100,
    restart_s=3.0,
)
DIGEST = SETTINGS.model_digest
KEY = b"k" * 32


def work(name: str, data: bytes = b"0123456789" * 4, *, max_tokens: int = 5) -> Work:
    return Work(
        key=AttemptKey(name, 1),
        tenant="default",
        variant_digest=DIGEST,
        input_kind=InputKind.TEXT,
        input=data,
        sampling=Sampling(),
        max_tokens=max_tokens,
        prefix_hashes=prefix_names(data, KEY),
    )


class Run:
    """An engine with its consumer; notes each output with the virtual second it came at."""

    def __init__(self, settings: OracleSettings = SETTINGS) -> None:
        self.engine = OracleEngine(settings)
        self.seen: list[tuple[float, SequenceOutput]] = []
        self.empty_batches = 0

    async def __aenter__(self) -> Run:
        await self.engine.start()
        self._task = asyncio.create_task(self._consume())
        self._t0 = asyncio.get_running_loop().time()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.engine.stop(0.0)
        await self._task

    async def _consume(self) -> None:
        async for batch in self.engine.steps():
            self.empty_batches += not batch.outputs
            self.seen += [(asyncio.get_running_loop().time() - self._t0, output) for output in batch.outputs]

    def of(self, name: str) -> list[SequenceOutput]:
        return [output for _, output in self.seen if output.key.request_id == name]

    def times(self, name: str) -> list[float]:
        return [round(at, 3) for at, output in self.seen if output.key.request_id == name]

    def text(self, name: str) -> str:
        return "".join(output.text for output in self.of(name))

    def tokens(self, name: str) -> tuple[int, ...]:
        return tuple(token for output in self.of(name) for token in output.token_ids)

    def finish(self, name: str) -> Finish | None:
        outputs = self.of(name)
        return outputs[-1].finish if outputs else None


async def test_it_answers_what_the_helpers_predict() -> None:
    async with Run() as run:
        run.engine.submit(work("a"))
        await asyncio.sleep(5)
        assert run.tokens("a") == oracle_tokens(DIGEST, work("a").input, 5)
        assert run.text("a") == oracle_text(DIGEST, work("a").input, 5)
        finish = run.finish("a")
        assert finish is not None
        assert finish.result is FinishReason.LENGTH
        assert (finish.usage.prompt_tokens, finish.usage.completion_tokens) == (10, 5)


async def test_it_keeps_the_configured_pace() -> None:
    async with Run() as run:
        run.engine.submit(work("a", b"x" * 1000))  # 250 tokens: three chunks, 0.25 s
        await asyncio.sleep(5)
        assert run.times("a") == [0.25, 0.35, 0.45, 0.55, 0.65]
        stamp = run.of("a")[0].first_token
        assert stamp is not None
        assert (round(stamp.queue_ms), round(stamp.prefill_ms), stamp.batch_size) == (0, 250, 1)


async def test_two_sequences_share_steps_and_slow_each_other_as_the_curve_says() -> None:
    async with Run() as run:
        run.engine.submit(work("a"))
        run.engine.submit(work("b"))
        await asyncio.sleep(5)
        assert run.times("a") == run.times("b") == [0.02, 0.22, 0.42, 0.62, 0.82]
        assert run.text("a") == run.text("b") == oracle_text(DIGEST, work("a").input, 5)


async def test_waiting_counts_as_queue_time() -> None:
    async with Run() as run:
        for name in "abc":
            run.engine.submit(work(name))
        await asyncio.sleep(5)
        stamp = run.of("c")[0].first_token
        assert stamp is not None
        assert round(stamp.queue_ms) == 820


async def test_a_warm_prefix_needs_no_prefill() -> None:
    prompt = b"p" * 2048
    async with Run() as run:
        run.engine.submit(work("cold", prompt, max_tokens=1))
        await asyncio.sleep(5)
        run.engine.submit(work("warm", prompt + b"more", max_tokens=1))
        await asyncio.sleep(5)
        cold, warm = (run.of(name)[0].first_token for name in ("cold", "warm"))
        assert cold is not None
        assert warm is not None
        assert (cold.cached_tokens, warm.cached_tokens) == (0, 512)
        assert (round(cold.prefill_ms), round(warm.prefill_ms)) == (512, 1)
        assert run.text("warm") == oracle_text(DIGEST, prompt + b"more", 1)
        changes = run.engine.cache_changes()
        assert changes is not None
        assert set(changes.held) == set(prefix_names(prompt, KEY))
        assert set(run.engine.cache_full().held) == set(changes.held)


async def test_a_continuation_goes_on_exactly_where_the_first_node_stopped() -> None:
    whole = oracle_tokens(DIGEST, work("a").input, 9)
    resumed = replace(work("a", max_tokens=5), start_index=4, replay_token_ids=whole[:4])
    async with Run() as run:
        run.engine.submit(resumed)
        await asyncio.sleep(5)
        assert [output.first_index for output in run.of("a")] == [4, 5, 6, 7, 8]
        assert run.tokens("a") == whole[4:]


async def test_replayed_tokens_that_are_not_the_models_own_change_the_rest() -> None:
    whole = oracle_tokens(DIGEST, work("a").input, 9)
    mixed = replace(work("a"), start_index=4, replay_token_ids=(*whole[:3], whole[3] ^ 1))
    async with Run() as run:
        run.engine.submit(mixed)
        await asyncio.sleep(5)
        assert set(run.tokens("a")).isdisjoint(whole[4:])


async def test_text_held_back_at_the_break_comes_from_the_continuing_node() -> None:
    text = oracle_text(DIGEST, work("a").input, 6)
    tokens = oracle_tokens(DIGEST, work("a").input, 6)
    stop = text[10:14]  # begins in token 1 and ends in token 2
    resumed = replace(work("a"), start_index=2, replay_token_ids=tokens[:2], stop=(stop,))
    async with Run() as run:
        run.engine.submit(replace(work("whole", max_tokens=6), stop=(stop,)))
        run.engine.submit(resumed)
        await asyncio.sleep(5)
        assert run.text("whole") == text[:10]
        assert run.text("a") == ""
        for name in ("whole", "a"):
            finish = run.finish(name)
            assert finish is not None
            assert finish.result is FinishReason.STOP


async def test_a_natural_end_is_a_stop_and_the_same_after_a_break() -> None:
    settings = replace(SETTINGS, natural_length=(3, 12))
    data = work("a").input
    length = oracle_length(DIGEST, data, (3, 12))
    replayed = oracle_tokens(DIGEST, data, 2)
    async with Run(settings) as run:
        run.engine.submit(work("a", max_tokens=100))
        run.engine.submit(replace(work("b", max_tokens=100), start_index=2, replay_token_ids=replayed))
        await asyncio.sleep(10)
        assert run.tokens("a") == oracle_tokens(DIGEST, data, length)
        assert run.tokens("b") == oracle_tokens(DIGEST, data, length)[2:]
        finish = run.finish("a")
        assert finish is not None
        assert finish.result is FinishReason.STOP


async def test_the_context_bounds_the_answer() -> None:
    async with Run(replace(SETTINGS, context_tokens=13)) as run:
        run.engine.submit(work("a", max_tokens=100))
        await asyncio.sleep(5)
        assert len(run.tokens("a")) == 3


async def test_a_crash_fails_everything_and_the_engine_comes_back() -> None:
    async with Run() as run:
        for name in "abc":
            run.engine.submit(work(name, max_tokens=50))
        await asyncio.sleep(0.5)
        run.engine.crash()
        assert not run.engine.load().ready
        with pytest.raises(EngineRefused) as refused:
            run.engine.submit(work("early"))
        assert refused.value.failure.cause is Cause.ENGINE_CRASHED
        await asyncio.sleep(2.9)
        for name in "abc":
            finish = run.finish(name)
            assert finish is not None
            assert isinstance(finish.result, Failure)
            assert finish.result.cause is Cause.ENGINE_CRASHED
        assert not run.engine.load().ready
        assert run.empty_batches == 1
        await asyncio.sleep(0.2)
        assert run.engine.load().ready
        assert run.empty_batches == 2
        run.engine.submit(work("after"))
        await asyncio.sleep(5)
        assert run.text("after") == oracle_text(DIGEST, work("after").input, 5)


async def test_a_crash_forgets_the_cache() -> None:
    async with Run() as run:
        run.engine.submit(work("a", b"p" * 2048))
        await asyncio.sleep(5)
        assert run.engine.cache_full().held
        run.engine.crash()
        assert run.engine.cache_full().held == ()


async def test_a_hang_is_seen_in_the_age_of_progress_and_ends_with_resume() -> None:
    async with Run() as run:
        run.engine.submit(work("a"))
        await asyncio.sleep(0.15)
        run.engine.hang()
        await asyncio.sleep(7)
        assert len(run.of("a")) == 2
        assert run.engine.load().progress_age_ms > 6000
        run.engine.resume()
        await asyncio.sleep(2)
        assert run.text("a") == oracle_text(DIGEST, work("a").input, 5)
        assert run.engine.load().progress_age_ms == 0


async def test_a_slowed_engine_still_reports_the_speed_it_had() -> None:
    async with Run() as run:
        run.engine.slow_down(10.0)
        run.engine.submit(work("a"))
        await asyncio.sleep(20)
        assert run.times("a") == [0.1, 1.1, 2.1, 3.1, 4.1]
        assert run.engine.load().speeds == SETTINGS.speeds


async def test_work_that_waits_past_its_deadline_fails_without_being_computed() -> None:
    async with Run() as run:
        for name in "ab":
            run.engine.submit(work(name, max_tokens=20))
        run.engine.submit(replace(work("late"), remaining_ms=500.0))
        await asyncio.sleep(10)
        (output,) = run.of("late")
        assert output.finish is not None
        assert isinstance(output.finish.result, Failure)
        assert output.finish.result.cause is Cause.DEADLINE
        assert run.times("late")[0] < 1.0


async def test_the_same_attempt_twice_is_refused() -> None:
    async with Run() as run:
        run.engine.submit(work("a"))
        await asyncio.sleep(0.05)
        with pytest.raises(EngineRefused) as refused:
            run.engine.submit(work("a"))
        assert refused.value.failure.cause is Cause.FENCED


@pytest.mark.parametrize(
    "broken",
    [
        replace(work("x"), input=b"\xff\xfe"),
        replace(work("x"), max_tokens=0),
        replace(work("x"), start_index=2),
        replace(work("x"), input_kind=InputKind.CHAT),
    ],
)
async def test_what_cannot_be_computed_is_invalid(broken: Work) -> None:
    async with Run() as run:
        with pytest.raises(EngineRefused) as refused:
            run.engine.submit(broken)
        assert refused.value.failure.cause is Cause.INVALID_INPUT


async def test_a_stop_within_its_grace_lets_work_finish() -> None:
    async with Run() as run:
        run.engine.submit(work("a"))
        await asyncio.sleep(0.1)
        await run.engine.stop(5.0)
        await asyncio.sleep(0)
        assert run.text("a") == oracle_text(DIGEST, work("a").input, 5)
