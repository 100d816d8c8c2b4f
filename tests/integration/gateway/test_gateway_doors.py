"""Certificates and keys on all three doors, what HTTP shows to whom, and a drain that loses nothing."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from gateway_rig import SLOW, Rig, expected_text, question, served_error, start_node, text_of, until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tls_files import TlsFiles, make_tls_files

from tidegate.gateway.v1 import gateway_pb2 as pb
from tidegate.routing.domain import Code, Finished, GenerateEvent, Health, ServeError
from tidegate.wire.channels import TlsConfig, open_channel

KEYS = {"app": "key-app-1", "ops": "key-ops-2", "clinic": "key-clinic-3"}


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_tls_files(tmp_path_factory.mktemp("tls"))


def keys(folder: Path) -> list[dict[str, Any]]:
    clients: list[dict[str, Any]] = []
    for name, key in KEYS.items():
        (folder / name).write_text(key)
        clients.append({"name": name, "key": {"file": folder / name}, "tenant": name})
    clients[1]["admin"] = True
    clients[2]["data_class"] = "restricted"
    return clients


@pytest.fixture
async def closed(tls: TlsFiles, tmp_path: Path) -> AsyncIterator[Rig]:
    """A gateway with certificates and keys everywhere, and one cloud node."""
    (tmp_path / "join").write_text("join-me")
    listen = {"port": 0, "tls": {"cert_file": tls.cert, "key_file": tls.key}}
    settings: dict[str, Any] = {
        "grpc": listen,
        "http": {**listen, "host": "0.0.0.0"},
        "link": {**listen, "heartbeat_s": 0.2, "lost_after_s": 1.0},
        "clients": keys(tmp_path),
        "nodes": [{"join_token": {"file": tmp_path / "join"}, "tier": "cloud", "tenants": ["app", "clinic"]}],
    }
    async with Rig(**settings) as rig:
        trust = TlsConfig.from_files(ca=tls.ca)
        await rig.channel.close()
        rig.channel = open_channel(f"localhost:{rig.ports.grpc}", tls=trust)
        node = await start_node("n1", f"localhost:{rig.ports.link}", join_token="join-me", tls=trust)
        rig.nodes.append(node)
        await rig.until_health("n1", Health.READY)
        yield rig


async def test_with_certificate_and_key_everything_works(closed: Rig) -> None:
    events = await closed.ask(question("r1"), key=KEYS["app"])
    assert text_of(events) == expected_text(question("r1"))


@pytest.mark.parametrize("key", ["", "wrong"])
async def test_without_a_key_nothing_does(closed: Rig, key: str) -> None:
    with pytest.raises(ServeError) as caught:
        await closed.ask(question("r1"), key=key)
    assert (caught.value.code, caught.value.reason) == (Code.UNAUTHENTICATED, "INVALID_API_KEY")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await closed.stub.ListNodes(pb.ListNodesRequest())
    assert served_error(refused.value).code is Code.UNAUTHENTICATED


async def test_a_keys_data_class_is_a_floor(closed: Rig) -> None:
    with pytest.raises(ServeError) as caught:
        await closed.ask(question("r1", data_class="public"), key=KEYS["clinic"])
    assert caught.value.reason == "DATA_CLASS"


async def test_a_node_kept_for_tenants_serves_and_shows_its_models_to_no_other(closed: Rig) -> None:
    with pytest.raises(ServeError) as caught:
        await closed.ask(question("r1"), key=KEYS["ops"])
    assert (caught.value.code, caught.value.reason) == (Code.FAILED_PRECONDITION, "NOT_PERMITTED")
    assert "tenant" not in str(caught.value.details)
    shown = {}
    for name in ("app", "ops"):
        metadata = (("authorization", f"Bearer {KEYS[name]}"),)
        shown[name] = len((await closed.stub.ListModels(pb.ListModelsRequest(), metadata=metadata)).models)
    assert shown == {"app": 1, "ops": 0}


async def test_plain_text_and_strangers_certificates_get_nowhere(
    closed: Rig, tls: TlsFiles, tmp_path: Path
) -> None:
    other = make_tls_files(tmp_path)
    for port in (closed.ports.grpc, closed.ports.link):
        for trust in (None, TlsConfig.from_files(ca=other.ca)):
            async with open_channel(f"localhost:{port}", tls=trust) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary("/x/y")(b"", timeout=3.0)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_link_can_demand_client_certificates(tls: TlsFiles) -> None:
    listen = {"cert_file": tls.cert, "key_file": tls.key, "client_ca_file": tls.ca}
    async with Rig(link={"port": 0, "heartbeat_s": 0.2, "lost_after_s": 1.0, "tls": listen}) as rig:
        address = f"localhost:{rig.ports.link}"
        bare = await start_node("bare", address, tls=TlsConfig.from_files(ca=tls.ca))
        own = TlsConfig.from_files(ca=tls.ca, cert=tls.client_cert, key=tls.client_key)
        shown = await start_node("shown", address, tls=own)
        rig.nodes += [bare, shown]
        await rig.until_health("shown", Health.READY)
        assert rig.health("bare") is None


class Http:
    """Speaks to the gateway's HTTP door."""

    def __init__(self, rig: Rig, tls: TlsFiles | None = None) -> None:
        scheme = "http" if tls is None else "https"
        self._base = f"{scheme}://localhost:{rig.ports.http}"
        self._ssl: Any = True if tls is None else ssl.create_default_context(cafile=str(tls.ca))

    async def get(self, path: str, key: str = "") -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with aiohttp.ClientSession() as session:
            async with session.get(self._base + path, headers=headers, ssl=self._ssl) as answer:
                return answer.status, await answer.text()


async def test_metrics_beyond_loopback_need_the_admin_scope(closed: Rig, tls: TlsFiles) -> None:
    http = Http(closed, tls)
    assert (await http.get("/metrics"))[0] == 401
    assert (await http.get("/metrics", "wrong"))[0] == 401
    assert (await http.get("/metrics", KEYS["app"]))[0] == 403
    status, body = await http.get("/metrics", KEYS["ops"])
    assert status == 200
    assert 'tidegate_nodes{health="ready",tier="cloud"} 1.0' in body
    for path in ("/healthz", "/readyz"):
        assert (await http.get(path))[0] == 200
    assert (await http.get("/v1/models"))[0] == 401
    assert (await http.get("/v1/models", KEYS["app"]))[0] == 200


async def test_readiness_is_green_only_with_a_ready_node(rig: Rig) -> None:
    http = Http(rig)
    assert (await http.get("/healthz"))[0] == 200
    status, body = await http.get("/readyz")
    assert (status, "no ready node" in body) == (503, True)
    node = await rig.add_node("n1")
    status, body = await http.get("/readyz")
    assert (status, '"ready_nodes": 1' in body) == (200, True)
    await node.unlink()
    await rig.until_health("n1", None)
    assert (await http.get("/readyz"))[0] == 503
    assert (await http.get("/metrics"))[0] == 200  # on loopback without keys


async def test_a_drain_finishes_what_runs_and_refuses_what_comes() -> None:
    async with Rig() as rig:
        await rig.add_node("n1", SLOW)
        seen: list[GenerateEvent] = []

        async def read() -> None:
            async for event in rig.events(rig.call(question("r1", max_tokens=20))):
                seen.append(event)

        running = asyncio.create_task(read())
        await until(lambda: len(seen) > 2, what="the stream")
        stopping = asyncio.create_task(rig.app.stop())
        await asyncio.sleep(0.05)
        health = health_pb2_grpc.HealthStub(rig.channel)
        answer = await health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await Http(rig).get("/readyz"))[0] == 503
        with pytest.raises(ServeError) as caught:
            await rig.ask(question("r2"))
        assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "DRAINING")
        assert caught.value.retry_after_ms
        await running
        assert isinstance(seen[-1], Finished)
        assert text_of(seen) == expected_text(question("r1", max_tokens=20))
        await stopping


async def test_a_drain_is_bounded_and_frees_the_nodes() -> None:
    rig = Rig(limits={"drain_s": 0.3})
    async with rig:
        node = await rig.add_node("n1", SLOW)
        asked = asyncio.create_task(rig.ask(question("r1", max_tokens=1000)))
        await until(lambda: not node.idle)
        started_s = time.monotonic()
        await rig.app.stop()
        assert time.monotonic() - started_s < 3.0
        with pytest.raises(ServeError) as caught:
            await asked
        assert caught.value.code is Code.UNAVAILABLE
        await until(lambda: node.idle)


async def test_a_busy_port_is_one_clear_line(rig: Rig) -> None:
    from serving.startup import ProgramError

    for door in ("grpc", "link", "http"):
        port = getattr(rig.ports, door)
        with pytest.raises(ProgramError, match=f"127.0.0.1:{port} is in use"):
            async with Rig(**{door: {"port": port}}):
                pass
