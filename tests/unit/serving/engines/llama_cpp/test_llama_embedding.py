"""Embeddings of the real model, beside running answers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from llama_driver import Driver

from serving.engines.base import EngineRefused
from serving.engines.llama_cpp.bundled import MODEL
from serving.engines.llama_cpp.embed_desk import EmbedDesk
from serving.engines.llama_cpp.embedding import groups
from serving.engines.llama_cpp.engine import LlamaCppEngine
from serving.engines.llama_cpp.settings import LlamaCppSettings
from tidegate.routing.domain import AttemptKey, Cause, Failure, FinishReason, InputKind, Sampling, Work
from tidegate.routing.embedding import pack_texts, unpack_vectors

SEA = "The tide comes in over the sand of the beach."
COAST = "Waves roll onto the shore as the sea rises."
Vector = np.ndarray[tuple[int], np.dtype[np.float64]]
LAW = "The court dismissed the appeal against the tax ruling."


def work(texts: list[str], number: int = 1) -> Work:
    data, count = pack_texts(texts), len(texts)
    return Work(AttemptKey(f"e{number}", 1), "t", "", InputKind.EMBED, data, Sampling(), count)


async def vectors_of(driver: Driver, texts: list[str], number: int) -> list[Vector]:
    given = work(texts, number)
    driver.engine.submit(given)
    assert (await driver.finish(given.key)).result is FinishReason.STOP
    found = [
        np.array(vector)
        for output in driver.outputs[given.key]
        for vector in unpack_vectors(output.vectors, output.count)
    ]
    assert len(found) == len(texts)
    return found


@pytest.mark.asyncio(loop_scope="module")
async def test_vectors_are_unit_long_near_for_near_texts_and_the_same_in_any_company(shared: Driver) -> None:
    sea, coast, law = await vectors_of(shared, [SEA, COAST, LAW], 1)
    assert [float(np.linalg.norm(v)) for v in (sea, coast, law)] == pytest.approx([1.0] * 3, abs=1e-5)
    assert sea @ coast > sea @ law
    (alone,) = await vectors_of(shared, [SEA], 2)
    crowd = await vectors_of(shared, [LAW] * 20 + [SEA], 3)
    assert alone @ sea > 0.999
    assert crowd[-1] @ sea > 0.999
    usage = (await shared.finish(AttemptKey("e1", 1))).usage
    assert usage.prompt_tokens > 20
    assert usage.completion_tokens == 0


@pytest.mark.asyncio(loop_scope="module")
async def test_a_running_answer_is_not_changed(shared: Driver) -> None:
    quiet = shared.submit(max_tokens=40, tenant="quiet")
    await shared.finish(quiet)
    beside = shared.submit(max_tokens=40, tenant="beside")
    await vectors_of(shared, [SEA, COAST, LAW] * 4, 4)
    await shared.finish(beside)
    assert shared.tokens(beside) == shared.tokens(quiet)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_text_that_is_too_long_is_named_with_its_numbers(shared: Driver) -> None:
    given = work(["short", "word " * 700], 5)
    shared.engine.submit(given)
    result = (await shared.finish(given.key)).result
    assert isinstance(result, Failure)
    assert result.cause is Cause.CONTEXT_LENGTH
    assert result.detail.startswith("input 1 has 7")
    assert result.detail.endswith("tokens, the limit is 1 to 512")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_cancelled_list_gives_nothing_more_and_the_next_is_served(shared: Driver) -> None:
    given = work([SEA * 5] * 100, 6)
    shared.engine.submit(given)
    shared.engine.cancel(given.key)
    await vectors_of(shared, [SEA], 7)
    assert given.key not in shared.outputs


async def test_a_crash_ends_what_is_embedded(model_path: Path) -> None:
    driver = Driver(LlamaCppSettings(model_path=model_path, model=MODEL, slots=1, context_tokens=256))
    info = await driver.start()
    assert "embeddings" in info.variants[0].capabilities
    given = work([SEA * 8] * 100)
    driver.engine.submit(given)
    assert driver.engine.child_pid is not None
    os.kill(driver.engine.child_pid, signal.SIGKILL)
    result = (await driver.finish(given.key)).result
    await driver.stop()
    assert isinstance(result, Failure)
    assert result.cause is Cause.ENGINE_CRASHED


def test_an_engine_that_must_not_refuses(model_path: Path) -> None:
    engine = LlamaCppEngine(LlamaCppSettings(model_path=model_path, model=MODEL, embeddings="off"))
    with pytest.raises(EngineRefused):
        engine.submit(work([SEA]))


def test_neighbours_share_a_step_as_far_as_they_fit() -> None:
    texts = [np.zeros(size, np.int32) for size in (30, 30, 50, 100, 1, 1)]
    assert [[len(t) for t in group] for group in groups(texts, 100)] == [[30, 30], [50], [100], [1, 1]]
    assert [len(group) for group in groups([np.zeros(1, np.int32)] * 20, 100)] == [16, 4]


def test_the_desk_is_bounded_and_refuses_what_is_no_list() -> None:
    desk = EmbedDesk(2)
    desk.add(work([SEA], 1), 0.0)
    desk.add(work([SEA], 2), 0.0)
    for given, cause in ((work([SEA], 1), Cause.FENCED), (work([SEA], 3), Cause.OVERLOADED)):
        with pytest.raises(EngineRefused) as refused:
            desk.add(given, 0.0)
        assert refused.value.failure.cause is cause
    assert desk.cancel(AttemptKey("e1", 1)) == {"t": "cancel_embed", "sid": 1}
    assert desk.take({"sid": 1}, 0.0) is None
    broken = Work(AttemptKey("x", 1), "t", "", InputKind.EMBED, b"{}", Sampling(), 1)
    with pytest.raises(EngineRefused, match="no list of texts"):
        desk.add(broken, 0.0)
    (failed,) = desk.fail_all(Failure(Cause.ENGINE_CRASHED))
    assert failed.key == AttemptKey("e2", 1)
