"""Pinned system prompts on the real engine."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from llama_driver import Driver, user

from serving.engines.llama_cpp.bundled import MODEL
from serving.engines.llama_cpp.settings import LlamaCppSettings, PinnedPrompt
from tidegate.routing.domain import Message, Role

pytestmark = pytest.mark.asyncio(loop_scope="module")

RULES = "Answer in one short sentence and never mention the tide tables. " * 14


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pinned(model_path: Path) -> AsyncIterator[Driver]:
    driver = Driver(
        LlamaCppSettings(
            model_path=model_path,
            model=MODEL,
            slots=2,
            context_tokens=512,
            pinned_prompts=(
                PinnedPrompt(text=RULES, tenants=("mine", "ours")),
                PinnedPrompt(text="word " * 900, tenants=("mine",)),
            ),
        )
    )
    await driver.start()
    yield driver
    await driver.stop()


async def cached_of(driver: Driver, tenant: str, question: str) -> tuple[int, int]:
    """(cached, all) prompt tokens."""
    key = driver.submit(chat=(Message(Role.SYSTEM, RULES), user(question)), tenant=tenant, max_tokens=2)
    await driver.finish(key)
    return driver.first(key).cached_tokens, driver.first(key).prompt_tokens


async def test_the_first_request_of_each_tenant_is_warm(pinned: Driver) -> None:
    held = pinned.engine.load().pinned_tokens
    assert 100 < held < 400
    for tenant in ("mine", "ours"):
        cached, whole = await cached_of(pinned, tenant, f"What is a lock gate, {tenant}?")
        assert held <= cached < whole <= held + 48
    assert (await cached_of(pinned, "others", "What is a lock gate?"))[0] == 0


async def test_other_work_pushes_nothing_pinned_out(pinned: Driver) -> None:
    held = pinned.engine.load().pinned_tokens
    for number in range(8):
        await pinned.finish(pinned.submit(f"{number} " * 220, tenant=f"guest{number}", max_tokens=1))
    # Names are told with the first request that carries them, and stay.
    assert (await cached_of(pinned, "mine", "And a sluice?"))[0] >= held
    await pinned.finish(pinned.submit("a b c " * 60, tenant="guest", max_tokens=1))
    await pinned.finish(pinned.submit("d e f " * 60, tenant="guest", max_tokens=1))
    assert pinned.engine.cache_full().held
    assert (await cached_of(pinned, "ours", "And a weir?"))[0] >= held


async def test_a_new_child_pins_again_after_it_has_begun_to_serve(pinned: Driver) -> None:
    held, pid = pinned.engine.load().pinned_tokens, pinned.engine.child_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await pinned.until_gone()
    await pinned.ready()
    while pinned.engine.load().pinned_tokens < held:
        await pinned.finish(pinned.submit("tick", tenant="clock", max_tokens=1))
    assert (await cached_of(pinned, "mine", "Once more?"))[0] >= held
