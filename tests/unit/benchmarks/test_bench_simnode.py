"""The simulated nodes behave as bench_link says: else its figures would be of something else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from benchmarks.link.simnode import FLOOD, FLOOD_OUTPUTS, MODEL, TOKENS_PER_S, SimNode
from tidegate.routing.domain import AttemptKey, CacheDelta, InputKind, Sampling, SequenceOutput, Work

KEY = AttemptKey("request", 1)


class Listener:
    def __init__(self) -> None:
        self.outputs: list[SequenceOutput] = []
        self.loads = 0

    def deliver(self, outputs: Sequence[SequenceOutput]) -> None:
        self.outputs += outputs

    def load_changed(self) -> None:
        self.loads += 1

    def cache_changed(self, delta: CacheDelta) -> None:
        pass


def work(text: str = "tide", max_tokens: int = 5) -> Work:
    return Work(KEY, "t", f"digest-of-{MODEL}", InputKind.TEXT, text.encode(), Sampling(), max_tokens)


@pytest.mark.looptime
async def test_tokens_come_at_the_stated_pace_and_end() -> None:
    node, listener = SimNode("n", (MODEL,), lambda key: None), Listener()
    node.attach(listener)
    node.submit(listener, work())
    assert node.load().running == 1
    await asyncio.sleep(2.0 / TOKENS_PER_S)
    assert len(listener.outputs) == 2
    await asyncio.sleep(1.0)
    assert [output.first_index for output in listener.outputs] == [0, 1, 2, 3, 4]
    assert listener.outputs[0].first_token is not None
    assert listener.outputs[-1].finish is not None
    assert node.load().running == 0


@pytest.mark.looptime
async def test_a_cancel_is_told_once_and_ends_the_tokens() -> None:
    told: list[AttemptKey] = []
    node, listener = SimNode("n", (MODEL,), told.append), Listener()
    node.attach(listener)
    node.submit(listener, work(max_tokens=1000))
    await asyncio.sleep(0.5)
    node.cancel(KEY)
    node.cancel(KEY)
    seen = len(listener.outputs)
    await asyncio.sleep(1.0)
    assert told == [KEY]
    assert len(listener.outputs) == seen > 0


@pytest.mark.looptime
async def test_a_flood_is_large_and_bounded() -> None:
    node, listener = SimNode("n", (MODEL,), lambda key: None), Listener()
    node.attach(listener)
    node.submit(listener, work(FLOOD, max_tokens=100_000))
    await asyncio.sleep(10.0)
    assert sum(len(output.text) > 1000 for output in listener.outputs) == FLOOD_OUTPUTS
    assert len(listener.outputs) > FLOOD_OUTPUTS


def test_every_beat_changes_the_load_and_is_told() -> None:
    node, listener = SimNode("n", (MODEL,), lambda key: None), Listener()
    node.attach(listener)
    loads = []
    for _ in range(3):
        node.beat()
        loads.append(node.load())
    assert listener.loads == 3
    assert len(set(map(str, loads))) == 3
