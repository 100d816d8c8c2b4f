"""Starting, health and the server's own metrics."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from openai_http_rig import VARIANT, running, settings, work
from openai_stub import Reply, Script, Stub, status

from serving.engines.base import EngineRefused, EngineUnavailable
from serving.engines.openai_http import OpenAiHttpEngine
from serving.engines.openai_http.health import UpstreamWatch
from tidegate.routing.domain import CacheDelta, Cause, Failure, FinishReason, Variant

METRICS = """
vllm:num_requests_running{model_name="m"} 6
vllm:num_requests_waiting{model_name="m"} 3
vllm:kv_cache_usage_perc{model_name="m"} 0.25
vllm:cache_config_info{block_size="16",num_gpu_blocks="1000"} 1
"""


def silent(stub: Stub) -> Script:
    async def answer(request: web.Request, reply: Reply) -> web.StreamResponse:
        await stub.release.wait()
        return await reply.end()

    return answer


# --- start ---


async def test_info_says_what_was_learned(stub: Stub) -> None:
    async with running(stub, variant=Variant("m", "d", context_tokens=0)) as rig:
        assert rig.info.variants[0].context_tokens == 777
        assert rig.info.build == "openai-http/unknown"
        assert rig.info.slots == 2
        assert rig.engine.load().ready
        assert rig.engine.cache_changes() is None
        assert rig.engine.cache_full() == CacheDelta(full=True)


async def unavailable(stub: Stub, **more: object) -> str:
    engine = OpenAiHttpEngine(settings(stub, **more))
    with pytest.raises(EngineUnavailable) as error:
        await engine.start()
    message = str(error.value)
    assert stub.url in message
    assert "sk-hidden" not in message
    return message


async def test_a_server_that_is_not_there_is_named(stub: Stub) -> None:
    await stub.down()
    assert "cannot be reached" in await unavailable(stub, api_key="sk-hidden")


async def test_a_refused_key_is_told_at_once(stub: Stub) -> None:
    stub.models_status = 401
    message = await asyncio.wait_for(unavailable(stub, api_key="sk-hidden", start_timeout_s=60.0), 2)
    assert "API key" in message


async def test_a_server_without_models_needs_a_name(stub: Stub) -> None:
    stub.models = {"data": []}
    assert "name must be set" in await unavailable(stub)
    async with running(stub, upstream_model="named") as rig:
        await rig.run(work())
    assert stub.seen[0].body["model"] == "named"


async def test_a_list_that_is_none_is_unavailable(stub: Stub) -> None:
    stub.models = ["m"]
    assert "not a list" in await unavailable(stub)


async def test_a_missing_ca_file_is_unavailable(stub: Stub) -> None:
    assert "No such file" in await unavailable(stub, ca_file="/nonexistent/ca.pem")


async def test_a_server_that_comes_late_is_waited_for(stub: Stub) -> None:
    stub.health = 503
    engine = OpenAiHttpEngine(settings(stub, start_timeout_s=5.0))
    starting = asyncio.create_task(engine.start())
    await asyncio.sleep(0.05)
    assert not starting.done()
    stub.health = 200
    await asyncio.wait_for(starting, 2)
    await engine.stop(0.0)


async def test_a_server_without_a_health_path_is_asked_for_its_models(stub: Stub) -> None:
    stub.health = 404
    async with running(stub) as rig:
        assert rig.engine.load().ready
        stub.models_status = 500
        await rig.until(lambda: not rig.engine.load().ready)


async def test_the_selftest_measures_and_finds_what_is_wrong(stub: Stub) -> None:
    async with running(stub, selftest=True) as rig:
        assert len(stub.seen) == 1
        assert not rig.outputs
    stub.script = status(404)
    assert "no such model" in await unavailable(stub, selftest=True)


async def test_cancelling_the_start_leaves_nothing_open(stub: Stub) -> None:
    stub.health = 503
    engine = OpenAiHttpEngine(settings(stub, start_timeout_s=60.0))
    starting = asyncio.create_task(engine.start())
    await asyncio.sleep(0.05)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting


# --- health ---


async def test_it_follows_the_servers_health_and_recovers(stub: Stub) -> None:
    async with running(stub) as rig:
        stub.health = 503
        await rig.until(lambda: not rig.engine.load().ready)
        with pytest.raises(EngineRefused) as refused:
            rig.engine.submit(work())
        assert refused.value.failure.cause is Cause.UPSTREAM
        stub.health = 200
        await rig.until(lambda: rig.engine.load().ready)
        assert (await rig.run(work())).result is FinishReason.STOP


async def test_a_server_that_dies_fails_the_work_at_once(stub: Stub) -> None:
    async with running(stub, health_interval_s=30.0) as rig:
        await asyncio.sleep(0.02)
        await stub.down()
        assert await rig.cause(work()) is Cause.UPSTREAM
        assert not rig.engine.load().ready


async def test_a_server_that_comes_back_is_used_again(stub: Stub) -> None:
    async with running(stub) as rig:
        await stub.down()
        await rig.until(lambda: not rig.engine.load().ready)
        await stub.up()
        await rig.until(lambda: rig.engine.load().ready)
        assert (await rig.run(work())).result is FinishReason.STOP


async def test_a_slow_health_answer_is_no_illness_while_work_runs(stub: Stub) -> None:
    stub.script = silent(stub)
    async with running(stub, health_timeout_s=0.05) as rig:
        given = work()
        rig.engine.submit(given)
        await rig.until(lambda: bool(stub.seen))
        stub.health_gate.clear()
        await asyncio.sleep(0.2)
        assert rig.engine.load().ready
        rig.engine.cancel(given.key)
        await rig.until(lambda: not rig.engine.load().ready)
        stub.health_gate.set()


async def test_waiting_work_goes_elsewhere_when_the_server_is_ill(stub: Stub) -> None:
    stub.script = silent(stub)
    async with running(stub, slots=1) as rig:
        first, second = work(), work()
        rig.engine.submit(first)
        rig.engine.submit(second)
        await rig.until(lambda: bool(stub.seen))
        stub.health = 500
        result = (await rig.finish(second)).result
        assert isinstance(result, Failure)
        assert result.cause is Cause.UPSTREAM
        assert rig.finish_of(first) is None


# --- metrics ---


async def test_load_counts_other_clients_work(stub: Stub) -> None:
    stub.metrics = METRICS
    async with running(stub) as rig:
        load = rig.engine.load()
        assert (load.running, load.queued) == (6, 3)
        assert load.free_cache_tokens == 12_000


async def test_own_work_is_not_counted_twice(stub: Stub) -> None:
    stub.script = silent(stub)
    async with running(stub) as rig:
        given = work()
        rig.engine.submit(given)
        await rig.until(lambda: bool(stub.seen))
        stub.metrics = "vllm:num_requests_running 1\nvllm:num_requests_waiting 0\n"
        await rig.engine._watch.scrape()
        load = rig.engine.load()
        assert (load.running, load.queued) == (1, 0)
        rig.engine.cancel(given.key)
        assert rig.engine.load().running == 0


async def test_stale_metrics_are_not_believed(stub: Stub) -> None:
    stub.metrics = METRICS
    async with running(stub) as rig:
        await rig.until(lambda: rig.engine.load().running == 6)
        stub.metrics = None
        await rig.until(lambda: rig.engine.load().running == 0)
        assert rig.engine.load().free_cache_tokens == 2 * VARIANT.context_tokens


async def test_unreadable_metrics_are_left_alone(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    stub.metrics = "vllm:num_requests_running{ nonsense\n"
    async with running(stub) as rig:
        await rig.run(work())
        assert rig.engine.load().running == 0
    assert "cannot be read" in caplog.text


async def test_a_health_watch_that_breaks_ends_the_steps(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = asyncio.Event()

    async def watch(self: UpstreamWatch) -> None:
        await broken.wait()
        raise ZeroDivisionError

    monkeypatch.setattr(UpstreamWatch, "run_health", watch)
    async with running(stub) as rig:
        await asyncio.sleep(0.05)
        assert not rig.task.done()
        broken.set()
        await asyncio.wait_for(rig.task, 2.0)
