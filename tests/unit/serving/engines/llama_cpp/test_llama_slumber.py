"""A model that is unloaded while nobody asks, and loaded for whoever asks next."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from llama_driver import Driver

from serving.engines.llama_cpp.bundled import MODEL
from serving.engines.llama_cpp.ledger import Ledger
from serving.engines.llama_cpp.settings import LlamaCppSettings
from serving.engines.llama_cpp.slumber import Slumber
from tidegate.routing.domain import (
    PROBE_PRIORITY,
    AttemptKey,
    Cause,
    Failure,
    FinishReason,
    FirstToken,
    InputKind,
    Sampling,
    SequenceOutput,
    Work,
)
from tidegate.routing.embedding import pack_texts

WORK = Work(AttemptKey("r", 1), "t", "", InputKind.TEXT, b"x", Sampling(), 4)
PROBE = replace(WORK, priority=PROBE_PRIORITY)


class Time:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_it_is_due_after_so_long_without_anybodys_work() -> None:
    time = Time()
    slumber, never = Slumber(60.0, time), Slumber(0.0, time)
    slumber.loaded(2500.0)
    time.now_s += 59.0
    assert not slumber.is_due([])
    # A long answer counts until its end, a probe not at all.
    assert not slumber.is_due([WORK])
    time.now_s += 59.0
    assert not slumber.is_due([PROBE])
    assert not slumber.is_due([])
    time.now_s += 1.0
    assert slumber.is_due([])
    assert not slumber.is_due([PROBE])
    assert not never.is_due([])


@pytest.mark.parametrize(("work", "kept"), [(WORK, True), (PROBE, False)])
def test_work_that_is_over_before_anybody_looks_keeps_the_model(work: Work, kept: bool) -> None:
    time = Time()
    slumber = Slumber(60.0, time)
    slumber.loaded(2500.0)
    due = []
    for _ in range(100):
        time.now_s += 1.0
        slumber.wanted(work)
        time.now_s += 1.0
        due.append(slumber.is_due([]))
    assert any(due) is not kept


def test_how_long_it_still_takes_to_wake_it() -> None:
    time = Time()
    slumber = Slumber(60.0, time)
    slumber.loaded(2500.0)
    assert slumber.wake_ms == 0.0
    slumber.fall_asleep()
    time.now_s += 500.0
    assert slumber.wake_ms == 2500.0
    slumber.wanted(WORK)
    time.now_s += 1.0
    slumber.wanted(PROBE)
    assert slumber.wake_ms == pytest.approx(1500.0)
    time.now_s += 60.0
    assert slumber.wake_ms == pytest.approx(250.0)
    slumber.loaded(61_000.0)
    assert (slumber.asleep, slumber.wake_ms, slumber.load_ms) == (False, 0.0, 61_000.0)
    assert not slumber.is_due([])


def test_waiting_for_the_model_is_no_queue() -> None:
    entry = Ledger().add(WORK, "x", 0.0)
    output = SequenceOutput(WORK.key, 0, 1, first_token=FirstToken(2100.0, 5.0, 0, 1, 3))
    assert entry.stamped(output) is output
    entry.wake_ms = 2000.0
    assert entry.stamped(output).first_token == FirstToken(100.0, 5.0, 0, 1, 3, wake_ms=2000.0)


@pytest.fixture
async def driver(model_path: Path, tmp_path: Path) -> AsyncIterator[Driver]:
    copy = tmp_path / "model.gguf"
    try:
        os.link(model_path, copy)
    except OSError:
        shutil.copy(model_path, copy)
    settings = LlamaCppSettings(model_path=copy, model=MODEL, slots=2, context_tokens=512, idle_unload_s=0.3)
    driver = Driver(settings)
    await driver.start()
    yield driver
    await driver.stop()


async def until_asleep(driver: Driver) -> None:
    async with asyncio.timeout(10.0):
        while driver.engine.child_pid is not None:
            await asyncio.sleep(0.02)


async def test_an_unloaded_model_answers_as_before_and_says_what_it_took(driver: Driver) -> None:
    awake = driver.submit(max_tokens=8)
    await driver.finish(awake)
    await driver.until(lambda: driver.engine.load().running == 0)
    assert driver.engine.load().wake_ms == 0.0
    await until_asleep(driver)
    asleep = driver.engine.load()
    assert asleep.ready
    assert asleep.wake_ms > 50.0
    assert driver.engine.cache_full().held == ()
    woken, other, gone = driver.submit(max_tokens=8), driver.submit("One two", max_tokens=4), driver.submit()
    embedded = driver.submit(pack_texts(["tide"]).decode(), max_tokens=1, input_kind=InputKind.EMBED)
    driver.engine.cancel(gone)
    assert driver.engine.load().running == 2
    for key in (woken, other, embedded):
        assert isinstance((await driver.finish(key)).result, FinishReason)
    assert driver.tokens(woken) == driver.tokens(awake)
    assert gone not in driver.outputs
    first = driver.first(woken)
    assert first.wake_ms > 50.0
    assert first.queue_ms < 0.5 * first.wake_ms
    assert driver.first(awake).wake_ms == 0.0
    # It goes to sleep again and again.
    await until_asleep(driver)


async def test_a_model_that_was_replaced_while_it_slept_is_not_served_in_its_place(driver: Driver) -> None:
    await until_asleep(driver)
    path, kept = driver.engine._settings.model_path, driver.engine._settings.model_path.with_suffix(".kept")
    path.rename(kept)
    shutil.copy(kept, path)
    finish = await driver.finish(driver.submit())
    assert isinstance(finish.result, Failure)
    assert finish.result.cause is Cause.ENGINE_CRASHED
    assert not driver.engine.load().ready
    # And it comes back with its file, as after any crash.
    kept.replace(path)
    await driver.ready()
    assert isinstance((await driver.finish(driver.submit(max_tokens=2))).result, FinishReason)
