"""What web pages can send to a local API is refused; what the device's own programs send is not."""

from __future__ import annotations

import pytest
from openai_front_fakes import CHAT, ScriptedBackend, serve

from serving.openai_api import local_guard


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:11435",
        "127.0.0.1",
        "127.0.0.1:1",
        "[::1]",
        "[::1]:11435",
        "edge.lan:80",
        "10.1.2.3",
    ],
)
async def test_hosts_of_this_machine_and_configured_ones_pass(host: str) -> None:
    async with serve(ScriptedBackend(), middlewares=[local_guard(["Edge.lan", "10.1.2.3"])]) as front:
        status, _, _ = await front.post(CHAT, headers={"Host": host})
    assert status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:11435",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "evil.example/127.0.0.1",
        "edge.lan",
        "localhost:port",
        "[::1",
        "",
    ],
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), ("GET", "/elsewhere")])
async def test_rebound_names_are_refused(host: str, method: str, path: str) -> None:
    async with serve(ScriptedBackend(), middlewares=[local_guard()]) as front:
        status, body, headers = await front.request(method, path, {"Host": host})
    assert (status, body["error"]["code"]) == (403, "host_not_allowed")
    assert headers["x-request-id"]


@pytest.mark.parametrize("origin", ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:8080"])
async def test_pages_of_this_machine_pass(origin: str) -> None:
    async with serve(ScriptedBackend(), middlewares=[local_guard()]) as front:
        status, _, _ = await front.post(CHAT, headers={"Origin": origin})
    assert status == 200


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "https://localhost.evil.example", "null", "", "file://", "chrome://127.0.0.1"],
)
async def test_other_pages_are_refused(origin: str) -> None:
    backend = ScriptedBackend()
    async with serve(backend, middlewares=[local_guard()]) as front:
        status, body, _ = await front.post(CHAT, headers={"Origin": origin})
    assert (status, body["error"]["code"]) == (403, "origin_not_allowed")
    assert backend.requests == []


async def test_what_a_page_can_post_without_asking_is_refused_on_every_path() -> None:
    async with serve(ScriptedBackend(), middlewares=[local_guard()]) as front:
        for path in ("/v1/chat/completions", "/elsewhere"):
            status, body, _ = await front.post(CHAT, path, {"Content-Type": "text/plain"})
            assert (status, body["error"]["code"]) == (415, "unsupported_media_type")


async def test_without_the_guard_any_host_is_served() -> None:
    async with serve(ScriptedBackend()) as front:
        status, _, _ = await front.request("GET", "/v1/models", {"Host": "api.example"})
    assert status == 200
