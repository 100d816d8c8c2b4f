"""The cloud node as a process: before a real gateway, behind it a real third-party server."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cloud_processes import JOIN_TOKEN, UPSTREAM_KEY, Program, Programs
from llama_cpp_server import free_port, llama_cpp_server

import tidegate
from tidegate.routing.domain import FinishReason, Health, Tier

WAIT_S = 20.0


def admin(node: Program, path: str) -> int:
    """The status that the node's admin listener answers with."""
    address = node.wait_for("admin listener is up")["address"]
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as response:
            status: int = response.status
            return status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@asynccontextmanager
async def client_of(ports: dict[str, int]) -> AsyncIterator[tidegate.Client]:
    async with tidegate.Client(f"127.0.0.1:{ports['grpc']}", deadline_s=WAIT_S) as client:
        yield client


async def until_node(
    client: tidegate.Client, predicate: Callable[[tidegate.NodeInfo], bool]
) -> tidegate.NodeInfo:
    async with asyncio.timeout(WAIT_S):
        while True:
            for node in await client.nodes():
                if predicate(node):
                    return node
            await asyncio.sleep(0.05)


def upstream(url: str, programs: Programs) -> dict[str, str]:
    return {
        "ENGINE__MODEL_NAME": "smollm2-135m",
        "ENGINE__SLOTS": "2",
        "ENGINE__OPENAI_HTTP__BASE_URL": url,
        "ENGINE__OPENAI_HTTP__API_KEY__FILE": programs.secret("upstream_key", UPSTREAM_KEY),
        "ENGINE__OPENAI_HTTP__START_TIMEOUT_S": "20",
    }


async def test_a_prompt_goes_through_gateway_and_node_to_a_real_server(
    programs: Programs, tmp_path: Path
) -> None:
    port = free_port()
    with llama_cpp_server(tmp_path, port=port, api_key=UPSTREAM_KEY) as url:
        _, ports = programs.gateway()
        node = programs.cloud(upstream(url, programs), link_port=ports["link"])
        async with client_of(ports) as client:
            ready = await until_node(client, lambda n: n.health is Health.READY)
            assert ready.tier is Tier.CLOUD
            assert ready.name == "cloud-under-test"
            answer = await client.complete("Say hello to the sea.", max_tokens=12)
            assert answer.text.strip()
            assert answer.finish_reason in (FinishReason.LENGTH, FinishReason.STOP)
            assert answer.route is not None
            assert answer.route.node_name == "cloud-under-test"
            assert answer.timings.prefill_ms > 0
            async with client.generate("Count to one hundred.", max_tokens=200) as stream:
                async for _ in stream:
                    break
            after = await client.complete("Say hello again.", max_tokens=4)
            assert after.text
    async with client_of(ports) as client:
        await until_node(client, lambda n: n.health is not Health.READY)
        assert admin(node, "/readyz") == 503
        assert admin(node, "/healthz") == 200
        with pytest.raises(tidegate.TidegateError):
            await client.complete("Are you there?", max_tokens=4, deadline_s=2.0)
        with llama_cpp_server(tmp_path, port=port, api_key=UPSTREAM_KEY):
            await until_node(client, lambda n: n.health is Health.READY)
            assert (await client.complete("Are you back?", max_tokens=4)).text
    assert node.stop()[0] == 0
    log = node.log.read_text()
    for secret in (UPSTREAM_KEY, JOIN_TOKEN, "hello to the sea"):
        assert secret not in log


ORACLE = {"ENGINE__KIND": "oracle"}


async def test_sigterm_lets_running_work_finish(programs: Programs) -> None:
    _, ports = programs.gateway()
    node = programs.cloud(ORACLE, link_port=ports["link"])
    async with client_of(ports) as client:
        await until_node(client, lambda n: n.health is Health.READY)
        async with client.generate("hello", max_tokens=30) as stream:
            async for _ in stream:
                node.process.terminate()
                break
            async for _ in stream:
                pass
            assert stream.completion().usage.completion_tokens == 30
        with pytest.raises(tidegate.TidegateError):
            await client.complete("too late", max_tokens=3, deadline_s=2.0)
    assert await asyncio.to_thread(node.process.wait, 10) == 0


async def test_sigterm_is_bounded_by_the_grace(programs: Programs) -> None:
    _, ports = programs.gateway()
    node = programs.cloud({**ORACLE, "DRAIN_GRACE_S": "0.3"}, link_port=ports["link"])
    async with client_of(ports) as client:
        await until_node(client, lambda n: n.health is Health.READY)
        async with client.generate("hello", max_tokens=1500) as stream:
            async for _ in stream:
                break
            code, took_s = await asyncio.to_thread(node.stop)
            assert code == 0
            assert took_s < 5
            with pytest.raises(tidegate.TidegateError):
                async for _ in stream:
                    pass


def test_sigterm_while_waiting_for_the_server(programs: Programs) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    node = programs.cloud(upstream(nowhere, programs), wait=False)
    assert admin(node, "/healthz") == 200
    assert admin(node, "/readyz") == 503
    code, took_s = node.stop()
    assert code == 0
    assert took_s < 3


def test_without_its_server_it_ends_with_one_clear_line(programs: Programs) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    settings = {**upstream(nowhere, programs), "ENGINE__OPENAI_HTTP__START_TIMEOUT_S": "0.2"}
    node = programs.cloud(settings, wait=False)
    assert node.process.wait(15) == 1
    last = node.lines()[-1]["msg"]
    assert last.startswith("tidegate-cloud: ")
    assert nowhere in last
    assert UPSTREAM_KEY not in node.log.read_text()


def test_settings_that_cannot_work_are_told_in_one_line(programs: Programs) -> None:
    began = time.monotonic()
    node = programs.cloud({**ORACLE, "LINK__GATEWAYS": ""}, wait=False)
    assert node.process.wait(15) == 2
    assert "link.gateways" in node.lines()[-1]["msg"]
    assert time.monotonic() - began < 15
