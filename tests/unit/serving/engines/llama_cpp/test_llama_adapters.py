"""LoRA adapters on the real model: chosen per request, in turns, and never mixed up in the prefix cache."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from llama_driver import GREEDY, Driver

from serving.engines.base import EngineRefused, EngineUnavailable
from serving.engines.llama_cpp.adapters import TURN_STEPS, Turns
from serving.engines.llama_cpp.bundled import MODEL
from serving.engines.llama_cpp.engine import LlamaCppEngine
from serving.engines.llama_cpp.identity import adapter_identities, replay_digest
from serving.engines.llama_cpp.settings import Adapter, LlamaCppSettings
from tidegate.routing.domain import AttemptKey, Cause, FinishReason, InputKind, Speeds, Work

STORY = "The harbour master kept two clocks on the wall of her office. " * 6
LAST_LAYER, WIDTH, INNER, ALIGNMENT = 29, 576, 1536, 32


def write_lora(path: Path, *, seed: int) -> Path:
    """An adapter for the bundled model, as a GGUF file: it drowns what the last layer gives in one direction.

    Such a model says one of two tokens all the time, with so large a margin that no rounding decides.
    """
    rng = np.random.default_rng(seed)
    tensors = {
        f"blk.{LAST_LAYER}.ffn_down.weight.lora_a": rng.standard_normal((1, INNER)).astype("<f4"),
        f"blk.{LAST_LAYER}.ffn_down.weight.lora_b": 1000.0 * rng.standard_normal((WIDTH, 1)).astype("<f4"),
    }

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    pairs = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs) + 1)
    head += b"".join(text(key) + struct.pack("<I", 8) + text(value) for key, value in pairs.items())
    head += text("adapter.lora.alpha") + struct.pack("<If", 6, 1.0)
    offset, body = 0, b""
    for name, values in tensors.items():
        data = values.tobytes()
        # GGUF names the dimension that lies closest together first.
        head += text(name) + struct.pack("<IQQIQ", 2, *reversed(values.shape), 0, offset)
        body += data + bytes(-len(data) % ALIGNMENT)
        offset = len(body)
    path.write_bytes(head + bytes(-len(head) % ALIGNMENT) + body)
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def driver(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Driver]:
    folder = tmp_path_factory.mktemp("adapters")
    adapters = [Adapter(name=n, path=write_lora(folder / n, seed=s)) for n, s in (("red", 4), ("blue", 8))]
    driver = Driver(
        LlamaCppSettings(
            model_path=model_path, model=MODEL, slots=3, context_tokens=512, adapters=tuple(adapters)
        )
    )
    driver.engine._speeds = Speeds(500.0, ((1, 60.0), (3, 40.0)))
    info = await driver.start()
    assert {"adapter:red", "adapter:blue"} <= info.variants[0].capabilities
    yield driver
    await driver.stop()


async def answer(driver: Driver, adapter: str, tenant: str, text: str = STORY) -> tuple[tuple[int, ...], int]:
    """Its tokens, and how many of the prompt were cached."""
    key = driver.submit(text, adapter=adapter, tenant=tenant, max_tokens=6)
    assert (await driver.finish(key)).result is FinishReason.LENGTH
    return driver.tokens(key), driver.first(key).cached_tokens


@pytest.mark.asyncio(loop_scope="module")
async def test_each_answers_its_own_way_and_shares_no_prefix(driver: Driver) -> None:
    plain, red, blue = [await answer(driver, name, "t") for name in ("", "red", "blue")]
    assert len({plain[0], red[0], blue[0]}) == 3
    assert [cached for _, cached in (plain, red, blue)] == [0, 0, 0]
    for name, before in (("", plain), ("red", red), ("blue", blue)):
        tokens, cached = await answer(driver, name, "t")
        assert tokens == before[0]
        assert cached > 50


@pytest.mark.asyncio(loop_scope="module")
async def test_side_by_side_they_answer_as_alone(driver: Driver) -> None:
    names = ("", "red", "blue")
    alone = [await answer(driver, name, f"alone-{name}") for name in names]
    together = await asyncio.gather(*(answer(driver, name, f"together-{name}") for name in names))
    assert [tokens for tokens, _ in together] == [tokens for tokens, _ in alone]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_long_prompt_of_one_holds_no_answer_of_another_up(driver: Driver) -> None:
    """And the prompt itself gets on while the other one answers."""
    answering = driver.submit(STORY, adapter="red", tenant="guard", max_tokens=60)
    await driver.until(lambda: len(driver.tokens(answering)) > 2 if answering in driver.outputs else False)
    begun = len(driver.tokens(answering))
    prompt = driver.submit(STORY, adapter="blue", tenant="guard", max_tokens=4)
    await driver.finish(prompt)
    assert len(driver.tokens(answering)) > begun + 4
    assert (await driver.finish(answering)).result is FinishReason.LENGTH


@pytest.mark.asyncio(loop_scope="module")
async def test_an_unknown_adapter_is_refused(driver: Driver) -> None:
    with pytest.raises(EngineRefused) as refused:
        driver.submit(adapter="green")
    assert refused.value.failure.cause is Cause.UNKNOWN_VARIANT


async def test_a_file_that_is_no_adapter_is_named(model_path: Path) -> None:
    adapter = Adapter(name="wrong", path=model_path)
    engine = LlamaCppEngine(LlamaCppSettings(model_path=model_path, model=MODEL, adapters=(adapter,)))
    with pytest.raises(EngineUnavailable, match="is no LoRA adapter"):
        await engine.start()


def test_the_replay_digest_covers_the_adapters(tmp_path: Path) -> None:
    red = Adapter(name="red", path=write_lora(tmp_path / "a", seed=1))
    blue = Adapter(name="blue", path=write_lora(tmp_path / "b", seed=2))

    def digest(*adapters: Adapter) -> str:
        return replay_digest("d", "b", "f16", "", adapter_identities(adapters))

    assert digest(red, blue) == digest(blue, red)
    half = red.model_copy(update={"scale": 0.5})
    assert len({digest(), digest(red), digest(half), digest(red, blue)}) == 4


@dataclass(eq=False)
class Asked:
    """As much of a running sequence as the turns look at."""

    work: Work


def asked(adapter: str) -> Asked:
    work = Work(AttemptKey("r", 1), "t", "d", InputKind.TEXT, b"x", GREEDY, 1, adapter=adapter)
    return Asked(work)


def test_in_a_round_every_sequence_gets_as_many_steps_as_any_other() -> None:
    active = [asked("red"), asked(""), asked("red"), asked("blue")]
    turns, steps = Turns(), [0, 0, 0, 0]
    for _ in range(3 * TURN_STEPS * 5):
        group = turns.group(active)  # type: ignore[arg-type]
        assert len({running.work.adapter for running in group}) == 1
        for running in group:
            steps[active.index(running)] += 1  # type: ignore[arg-type]
    assert steps == [5 * TURN_STEPS] * 4


def test_a_group_with_nothing_to_do_gives_its_turn_away() -> None:
    active, turns = [asked("red"), asked("blue")], Turns()
    first = turns.group(active)[0].work.adapter  # type: ignore[arg-type]
    turns.end()
    assert turns.group(active)[0].work.adapter != first  # type: ignore[arg-type]
    alone = [asked("blue")]
    assert [turns.group(alone) for _ in range(9)] == [alone] * 9  # type: ignore[arg-type,comparison-overlap]
