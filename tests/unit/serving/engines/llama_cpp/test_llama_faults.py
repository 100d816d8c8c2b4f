"""What happens when the child dies, hangs, or cannot start; each test has an engine of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from llama_driver import Driver

from serving.engines.base import EngineRefused, EngineUnavailable
from serving.engines.llama_cpp.bundled import MODEL, bundled_model
from serving.engines.llama_cpp.engine import LlamaCppEngine
from serving.engines.llama_cpp.settings import LlamaCppSettings
from tidegate.routing.domain import AttemptKey, Cause, Failure, FinishReason


@pytest.fixture
def settings(model_path: Path) -> LlamaCppSettings:
    return LlamaCppSettings(
        model_path=model_path, model=MODEL, slots=2, queue_limit=4, context_tokens=1024, hang_timeout_s=2.0
    )


@pytest.fixture
async def driver(settings: LlamaCppSettings) -> AsyncIterator[Driver]:
    driver = Driver(settings)
    await driver.start()
    yield driver
    await driver.stop()


async def load(driver: Driver) -> list[AttemptKey]:
    """Running and waiting sequences."""
    keys = [driver.submit(max_tokens=800) for _ in range(4)]
    await driver.until(lambda: len(driver.outputs) == 2)
    return keys


def child_of(driver: Driver) -> int:
    assert driver.engine.child_pid is not None
    return driver.engine.child_pid


async def assert_failed(driver: Driver, keys: list[AttemptKey], cause: Cause) -> None:
    for key in keys:
        finish = await driver.finish(key)
        assert isinstance(finish.result, Failure)
        assert finish.result.cause is cause
        outputs = driver.outputs[key]
        assert [o.first_index for o in outputs] == list(range(len(outputs)))


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_crash_under_load_fails_what_ran_and_the_next_is_served(
    driver: Driver, blow: signal.Signals
) -> None:
    for _ in range(2):
        keys = await load(driver)
        driver.outputs.clear()
        pid = child_of(driver)
        struck = time.monotonic()
        os.kill(pid, blow)
        for key in keys:
            finish = await driver.finish(key)
            assert isinstance(finish.result, Failure)
            assert finish.result.cause is Cause.ENGINE_CRASHED
        assert not driver.engine.load().ready
        assert driver.engine.load().running == 0
        # Taken while the engine is coming back, answered when it is.
        late = driver.submit(max_tokens=2)
        assert (await driver.finish(late)).result is FinishReason.LENGTH
        assert driver.engine.load().ready
        assert child_of(driver) != pid
        print(f"served {time.monotonic() - struck:.2f} s after {blow.name}")
        driver.outputs.clear()


async def test_a_crash_empties_the_reported_cache(driver: Driver) -> None:
    await driver.finish(driver.submit("prefix " * 200, max_tokens=1))
    delta = driver.engine.cache_changes()
    assert delta is not None
    os.kill(child_of(driver), signal.SIGKILL)
    await driver.until_gone()
    after = driver.engine.cache_changes()
    assert after is not None
    assert set(after.evicted) == set(delta.held)
    assert driver.engine.cache_full().held == ()


async def test_a_child_that_died_just_before_the_stop_is_reaped(settings: LlamaCppSettings) -> None:
    for _ in range(3):
        driver = Driver(settings)
        await driver.start()
        pid = child_of(driver)
        os.kill(pid, signal.SIGKILL)
        await driver.until_gone()
        await driver.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_a_hang_is_noticed_by_the_watchdog(driver: Driver) -> None:
    keys = await load(driver)
    pid = child_of(driver)
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    await assert_failed(driver, keys, Cause.ENGINE_HUNG)
    assert 1.5 < time.monotonic() - began < 4.0
    await driver.ready()
    assert (await driver.finish(driver.submit(max_tokens=2))).result is FinishReason.LENGTH


async def test_an_idle_child_that_hangs_is_noticed_with_the_next_work(driver: Driver) -> None:
    os.kill(child_of(driver), signal.SIGSTOP)
    key = driver.submit(max_tokens=2)
    await assert_failed(driver, [key], Cause.ENGINE_HUNG)


async def test_an_idle_child_is_never_taken_for_a_hung_one(settings: LlamaCppSettings) -> None:
    driver = Driver(settings.model_copy(update={"hang_timeout_s": 0.3}))
    await driver.start()
    pid = child_of(driver)
    await asyncio.sleep(1.0)
    assert child_of(driver) == pid
    assert driver.engine.load().progress_age_ms == 0.0
    await driver.stop()


async def test_stop_ends_the_child_and_may_be_repeated(driver: Driver) -> None:
    await load(driver)
    pid = child_of(driver)
    began = time.monotonic()
    await driver.engine.stop(0.2)
    assert time.monotonic() - began < 1.2
    assert not is_alive(pid)
    with pytest.raises(EngineRefused):
        driver.submit()
    await driver.engine.stop(0.0)


async def test_a_stopped_child_does_not_delay_stop(driver: Driver) -> None:
    pid = child_of(driver)
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    await driver.engine.stop(0.0)
    assert time.monotonic() - began < 1.0
    assert not is_alive(pid)


async def test_stop_waits_for_running_sequences_inside_the_grace(driver: Driver) -> None:
    key = driver.submit(max_tokens=10)
    await driver.engine.stop(10.0)
    assert (await driver.finish(key)).result is FinishReason.LENGTH


async def test_files_that_are_no_models_are_one_sentence(settings: LlamaCppSettings, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    with bundled_model().open("rb") as whole:
        cut.write_bytes(whole.read(30_000_000))
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"not a model")
    for path in (tmp_path / "none.gguf", wrong, cut):
        engine = LlamaCppEngine(settings.model_copy(update={"model_path": path}))
        with pytest.raises(EngineUnavailable) as error:
            await engine.start()
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
        await engine.stop(0.0)


async def test_what_llama_cpp_refuses_is_told(settings: LlamaCppSettings, tmp_path: Path) -> None:
    """A header that is well formed and a model that is not: only the child can find out."""
    data = bundled_model().read_bytes()
    path = tmp_path / "strange.gguf"
    path.write_bytes(data.replace(b"blk.0.attn_q.weight", b"blk.0.nothing.weigh"))
    engine = LlamaCppEngine(settings.model_copy(update={"model_path": path}))
    with pytest.raises(EngineUnavailable, match="cannot be loaded"):
        await engine.start()


async def test_a_broken_template_is_told(settings: LlamaCppSettings) -> None:
    engine = LlamaCppEngine(settings.model_copy(update={"chat_template": "{% for %}"}))
    with pytest.raises(EngineUnavailable, match="template is broken"):
        await engine.start()


async def test_a_model_that_loads_too_slowly_is_told(settings: LlamaCppSettings) -> None:
    engine = LlamaCppEngine(settings.model_copy(update={"load_timeout_s": 0.01}))
    with pytest.raises(EngineUnavailable, match="load_timeout_s"):
        await engine.start()


PARENT = """
import asyncio, sys
from pathlib import Path
from serving.engines.llama_cpp.engine import LlamaCppEngine
from serving.engines.llama_cpp.settings import LlamaCppSettings

async def main():
    engine = LlamaCppEngine(LlamaCppSettings(model_path=Path(sys.argv[1]), model="m", context_tokens=256))
    await engine.start()
    print(engine.child_pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_no_child_outlives_its_parent(model_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(model_path)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)  # noqa: ASYNC220
    with parent:
        assert parent.stdout is not None
        pid = int(await asyncio.to_thread(parent.stdout.readline))
        assert is_alive(pid)
        parent.kill()
        async with asyncio.timeout(5.0):
            while is_alive(pid):
                await asyncio.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
