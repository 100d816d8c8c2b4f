"""What every Upstream (gateway.dispatch.attempt) keeps, however work reaches the node behind it.

A test class per way inherits the suite and gives the fixture `far`: the upstream, the id of one node with
an oracle engine of two slots and one place to wait, its runtime and engine, and a way to cut it off.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import pytest

from gateway.dispatch.attempt import Upstream
from gateway.upstream import AttemptStream, NotLinked
from serving.engines.oracle import OracleEngine, OracleSettings, oracle_tokens
from serving.node.runtime import NodeRuntime
from tidegate.routing.domain import (
    AttemptKey,
    Cause,
    Failure,
    FinishReason,
    InputKind,
    Sampling,
    SequenceOutput,
    Work,
)

SETTINGS = OracleSettings(
    slots=2, queue_limit=1, prefill_tokens_per_s=1e6, decode=((1, 400.0), (2, 400.0)), context_tokens=200_000
)
ENDLESS = 10_000
WAIT_S = 10.0
_names = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Far:
    upstream: Upstream
    node_id: str
    engine: OracleEngine
    runtime: NodeRuntime
    cut: Callable[[], Awaitable[None]]


def work(data: bytes = b"what is a tide?", max_tokens: int = 12, **changes: object) -> Work:
    base = Work(
        key=AttemptKey(f"u{next(_names)}", 1),
        tenant="default",
        variant_digest=SETTINGS.model_digest,
        input_kind=InputKind.TEXT,
        input=data,
        sampling=Sampling(),
        max_tokens=max_tokens,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


async def rest(stream: AttemptStream) -> list[SequenceOutput]:
    """All outputs up to the one with `finish`."""
    outputs: list[SequenceOutput] = []
    async with asyncio.timeout(WAIT_S):
        while not outputs or outputs[-1].finish is None:
            outputs.append(await stream.next())
    return outputs


def result(outputs: list[SequenceOutput]) -> FinishReason | Failure:
    finish = outputs[-1].finish
    assert finish is not None
    return finish.result


async def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.002)


def tokens(outputs: list[SequenceOutput]) -> list[int]:
    """Their ids; indices must be contiguous from 0 and the stamps come once, with the first token."""
    ids: list[int] = []
    for output in outputs:
        assert output.first_index == len(ids)
        assert (output.first_token is not None) == (not ids and output.count > 0)
        ids.extend(output.token_ids)
    return ids


class UpstreamContract:
    async def test_what_the_node_computes_arrives_whole_and_in_order(self, far: Far) -> None:
        sent = work()
        outputs = await rest(far.upstream.open(far.node_id, sent))
        assert tokens(outputs) == list(oracle_tokens(SETTINGS.model_digest, sent.input, 12))
        assert result(outputs) is FinishReason.LENGTH

    async def test_a_large_input_arrives_whole(self, far: Far) -> None:
        sent = work(bytes(range(32, 127)) * 3000)
        outputs = await rest(far.upstream.open(far.node_id, sent))
        assert tokens(outputs) == list(oracle_tokens(SETTINGS.model_digest, sent.input, 12))

    async def test_sequences_at_once_are_not_mixed(self, far: Far) -> None:
        works = [work(b"one"), work(b"two")]
        got = await asyncio.gather(*(rest(far.upstream.open(far.node_id, w)) for w in works))
        for sent, outputs in zip(works, got, strict=True):
            assert tokens(outputs) == list(oracle_tokens(SETTINGS.model_digest, sent.input, 12))

    async def test_few_credits_lose_nothing_when_the_reader_is_slow(self, far: Far) -> None:
        sent = work(max_tokens=60, credits=4)
        stream = far.upstream.open(far.node_id, sent)
        await until(lambda: far.engine.load().running == 1)
        await until(lambda: far.engine.load().running == 0)
        assert tokens(await rest(stream)) == list(oracle_tokens(SETTINGS.model_digest, sent.input, 60))

    async def test_closing_frees_the_sequence(self, far: Far) -> None:
        stream = far.upstream.open(far.node_id, work(max_tokens=ENDLESS))
        await stream.next()
        stream.close()
        await until(lambda: far.engine.load().running == 0)

    async def test_closing_at_once_frees_it_too(self, far: Far) -> None:
        for _ in range(20):
            far.upstream.open(far.node_id, work(max_tokens=ENDLESS)).close()
        outputs = await rest(far.upstream.open(far.node_id, work()))
        assert result(outputs) is FinishReason.LENGTH
        await until(lambda: far.engine.load().running == 0)

    async def test_closing_one_leaves_the_other(self, far: Far) -> None:
        kept = work()
        closed = far.upstream.open(far.node_id, work(b"other", max_tokens=ENDLESS))
        stream = far.upstream.open(far.node_id, kept)
        closed.close()
        assert tokens(await rest(stream)) == list(oracle_tokens(SETTINGS.model_digest, kept.input, 12))

    async def test_a_full_node_refuses_with_its_cause(self, far: Far) -> None:
        held = [far.upstream.open(far.node_id, work(max_tokens=ENDLESS)) for _ in range(3)]
        await until(lambda: far.engine.load().running + far.engine.load().queued == 3)
        failure = result(await rest(far.upstream.open(far.node_id, work())))
        assert isinstance(failure, Failure)
        assert failure.cause is Cause.OVERLOADED
        for stream in held:
            stream.close()

    async def test_an_unknown_variant_is_a_failure_of_the_attempt(self, far: Far) -> None:
        failure = result(await rest(far.upstream.open(far.node_id, work(variant_digest="nobody has it"))))
        assert isinstance(failure, Failure)
        assert failure.cause is Cause.UNKNOWN_VARIANT

    async def test_a_lost_node_ends_its_attempts_at_once(self, far: Far) -> None:
        stream = far.upstream.open(far.node_id, work(max_tokens=ENDLESS))
        await stream.next()
        await far.cut()
        failure = result(await rest(stream))
        assert isinstance(failure, Failure)
        assert failure.cause is Cause.NODE_LOST

    async def test_a_node_without_a_link_cannot_be_opened(self, far: Far) -> None:
        with pytest.raises(NotLinked):
            far.upstream.open("nobody", work())
