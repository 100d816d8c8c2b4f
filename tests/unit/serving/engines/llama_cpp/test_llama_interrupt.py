"""A step that nobody waits for any more ends at once, and leaves what was there before it."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from llama_driver import Driver

from serving.engines.llama_cpp.interrupting import StepInterrupter
from serving.engines.llama_cpp.prefix import Lease, Slot
from serving.engines.llama_cpp.sequence import computed_for

CHILD = Path(__file__).with_name("llama_interrupt_child.py")


async def test_llama_cpp_ends_a_step_early_and_can_go_on_from_before_it(model_path: Path) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, str(CHILD), str(model_path), stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    output, _ = await asyncio.wait_for(child.communicate(), 60.0)
    assert json.loads(output) == {
        "before": True,
        "interrupted": False,
        "until_resumed": False,
        "cut": True,
        "after": True,
        "other": True,
        "same": True,
    }


class Told:
    """Counts what an interrupter asks for."""

    def __init__(self) -> None:
        self.interrupted = False
        self.interrupter = StepInterrupter(self.interrupt, self.resume)

    def interrupt(self) -> None:
        self.interrupted = True

    def resume(self) -> None:
        self.interrupted = False


def test_a_step_ends_early_only_when_all_it_computes_for_are_gone() -> None:
    told = Told()
    with told.interrupter.step({1, 2}):
        told.interrupter.cancelled(1)
        told.interrupter.cancelled(3)
        assert not told.interrupted
        told.interrupter.cancelled(2)
        assert told.interrupted


def test_no_interrupt_outlives_its_step() -> None:
    told = Told()
    with told.interrupter.step({1}):
        told.interrupter.cancelled(1)
    assert not told.interrupted
    told.interrupter.cancelled(2)
    assert not told.interrupted


def test_a_cancel_between_reading_and_the_step_counts_and_an_older_one_does_not() -> None:
    told = Told()
    told.interrupter.cancelled(1)
    told.interrupter.begin_round()
    with told.interrupter.step({1}):
        assert not told.interrupted
    told.interrupter.cancelled(2)
    with told.interrupter.step({2}):
        assert told.interrupted


@pytest.mark.asyncio(loop_scope="module")
async def test_a_cancelled_prompt_does_not_compute_to_the_end_of_its_step(shared: Driver) -> None:
    """A step that went on to its end would have left the prompt's beginning in the cache."""
    for turn in range(3):
        text = f"{turn} the sea comes and the sea goes " + "and the tide turns " * 90
        cut = shared.submit(text, max_tokens=4)
        await asyncio.sleep(0.03)
        shared.engine.cancel(cut)
        again = shared.submit(text, max_tokens=4)
        await shared.finish(again)
        assert not shared.outputs.get(cut)
        assert shared.first(again).cached_tokens == 0


def running(sid: int, slot: int, leader: int | None = None) -> Any:
    lease = Lease(Slot(slot), 0, None if leader is None else Slot(leader))
    return SimpleNamespace(sid=sid, slot=lease.slot, lease=lease)


def test_a_step_is_also_for_those_who_wait_for_what_it_computes() -> None:
    active = [running(1, 0), running(2, 1, leader=0), running(3, 2, leader=5), running(4, 5)]
    assert computed_for({1}, active) == {1, 2}
    assert computed_for({1, 4}, active) == {1, 2, 3, 4}
    told = Told()
    with told.interrupter.step(computed_for({1}, active)):
        told.interrupter.cancelled(1)
        assert not told.interrupted
        told.interrupter.cancelled(2)
        assert told.interrupted
