"""A real engine whose answers cannot keep their pace: new ones wait, running ones go on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from llama_driver import Driver

from serving.engines.llama_cpp.settings import LlamaCppSettings
from tidegate.routing.domain import AttemptKey, FinishReason, Sampling

# Without the tokens that end an answer.
ENDLESS = Sampling(temperature=0.0, logit_bias=((0, -1e6), (2, -1e6)))
LONG = 4000
# No device computes a step in it, and any does in the other.
MISSED_MS, KEPT_MS = 0.001, 1e7

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def driver(model_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Driver]:
    settings = LlamaCppSettings(
        model_path=model_path, model="m", slots=4, context_tokens=4096, max_tpot_ms=request.param
    )
    made = Driver(settings)
    await made.start()
    yield made
    await made.stop()


def count(driver: Driver, key: AttemptKey) -> int:
    return sum(output.count for output in driver.outputs.get(key, ()))


@pytest.mark.parametrize("driver", [MISSED_MS], indirect=True)
async def test_where_the_bound_is_missed_new_answers_wait_and_running_ones_go_on(driver: Driver) -> None:
    engine = driver.engine
    running = [driver.submit(max_tokens=LONG, sampling=ENDLESS) for _ in range(4)]
    # Not one: hardly anything would be gained by that.
    await driver.until(lambda: engine.load().usable_slots == 2, 60.0)
    assert (engine.load().running, engine.load().queued) == (4, 0)
    waits, last = driver.submit(max_tokens=4), running[-1]
    engine.cancel(running[0])
    # A slot is free, and not to be used.
    before = count(driver, last)
    await driver.until(lambda: count(driver, last) > before + 15)
    assert count(driver, waits) == 0
    assert (engine.load().running, engine.load().queued) == (3, 1)
    assert not any(output.finish for output in driver.outputs[last])
    for key in running[1:3]:
        engine.cancel(key)
    assert (await driver.finish(waits)).result is FinishReason.LENGTH


@pytest.mark.parametrize("driver", [0.0, KEPT_MS], indirect=True)
async def test_where_it_is_kept_or_off_a_free_slot_is_used(driver: Driver) -> None:
    running = [driver.submit(max_tokens=LONG, sampling=ENDLESS) for _ in range(4)]
    last = running[-1]
    await driver.until(lambda: count(driver, last) > 100)
    waits = driver.submit(max_tokens=4)
    driver.engine.cancel(running[0])
    assert (await driver.finish(waits)).result is FinishReason.LENGTH
    assert driver.engine.load().usable_slots == 4
    assert not driver.outputs[last][-1].finish
