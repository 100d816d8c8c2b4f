"""Channel options, TLS material, and the reason for own_connection."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tidegate.gateway.v1 import gateway_pb2 as pb
from tidegate.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from tidegate.testing import FakeGateway
from tidegate.wire.channels import TlsConfig, channel_options, open_channel, server_options


def test_the_link_bounds_what_is_on_its_way() -> None:
    options = dict(channel_options(small_window=True, own_connection=True))
    assert options["grpc.http2.bdp_probe"] == 0
    assert options["grpc.http2.lookahead_bytes"] == 32_768
    assert options["grpc.use_local_subchannel_pool"] == 1
    assert "grpc.http2.bdp_probe" not in dict(channel_options())


def test_servers_allow_the_pings_of_our_channels() -> None:
    client, server = dict(channel_options()), dict(server_options())
    allowed = int(server["grpc.http2.min_ping_interval_without_data_ms"])
    assert int(client["grpc.keepalive_time_ms"]) > allowed
    assert client["grpc.http2.ping_timeout_ms"] == 3_000
    assert server["grpc.so_reuseport"] == 0
    assert dict(server_options(max_concurrent_streams=7))["grpc.max_concurrent_streams"] == 7


def test_tls_needs_both_halves_and_hides_the_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="key"):
        TlsConfig(cert_pem=b"c")
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text(f"{name}-pem")
    tls = TlsConfig.from_files(
        ca=tmp_path / "ca", cert=tmp_path / "cert", key=tmp_path / "key", server_name="gw"
    )
    assert (tls.ca_pem, tls.cert_pem, tls.key_pem) == (b"ca-pem", b"cert-pem", b"key-pem")
    assert "key-pem" not in repr(tls)
    assert dict(channel_options(server_name="gw"))["grpc.ssl_target_name_override"] == "gw"
    with pytest.raises(FileNotFoundError):
        TlsConfig.from_files(ca=tmp_path / "none")


async def _connections(own_connection: bool) -> int:
    """Two channels to one address, each used once, through a proxy that counts connections."""
    accepted = 0

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async with FakeGateway() as gateway:
        host, port = gateway.address.split(":")

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal accepted
            accepted += 1
            up_reader, up_writer = await asyncio.open_connection(host, int(port))
            await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))

        proxy = await asyncio.start_server(relay, "127.0.0.1", 0)
        address = f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        channels = [open_channel(address, own_connection=own_connection) for _ in range(2)]
        for channel in channels:
            await GatewayServiceStub(channel).ListNodes(pb.ListNodesRequest(), timeout=5)  # type: ignore[misc]
        for channel in channels:
            await channel.close(None)
        proxy.close()
        await proxy.wait_closed()
    return accepted


async def test_own_connection_gives_each_channel_its_own() -> None:
    assert await _connections(own_connection=True) == 2


async def test_channels_share_a_connection_otherwise() -> None:
    """The positive control: without the option the test above would see one."""
    assert await _connections(own_connection=False) == 1
