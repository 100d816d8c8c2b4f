"""The gRPC servers: services, interceptors, listeners."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gateway.telemetry import Metrics
from gateway.transport.client_server import GatewayServicer
from gateway.transport.guard import Guard
from gateway.transport.link_server import NodeLinkServicer
from serving.settings import ListenSettings, TlsSettings
from serving.startup import bind_problem
from serving.tls import read_pem
from tidegate.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from tidegate.node.v1 import node_pb2_grpc
from tidegate.wire.channels import server_options

SERVICE = gateway_pb2.DESCRIPTOR.services_by_name["GatewayService"].full_name
# A bound against rapid reset. Above it gRPC refuses streams instead of queueing them, of honest clients too:
# the limit that counts is limits.in_flight, which answers in words.
MAX_STREAMS_PER_CONNECTION = 2000


class ClientServer:
    """GatewayService with grpc.health.v1 and reflection."""

    def __init__(self, servicer: GatewayServicer, metrics: Metrics) -> None:
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            interceptors=[Guard(metrics)],
            options=server_options(max_concurrent_streams=MAX_STREAMS_PER_CONNECTION),
        )
        gateway_pb2_grpc.add_GatewayServiceServicer_to_server(servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    def listen(self, settings: ListenSettings) -> int:
        """Returns the port. Raises ProgramError or SettingsError."""
        return _listen(self._server, settings, "grpc")

    async def start(self) -> None:
        await self._server.start()
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        """Tells health checkers that no new request is wanted."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_s: float) -> None:
        await self._server.stop(grace_s)


class LinkServer:
    """NodeLinkService on its own port."""

    def __init__(self, servicer: NodeLinkServicer) -> None:
        self._server = grpc.aio.server(options=server_options(small_window=True))
        node_pb2_grpc.add_NodeLinkServiceServicer_to_server(servicer, self._server)

    def listen(self, settings: ListenSettings) -> int:
        """Returns the port. Raises ProgramError or SettingsError."""
        return _listen(self._server, settings, "link")

    async def start(self) -> None:
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        await self._server.stop(grace_s)


def _listen(server: grpc.aio.Server, listen: ListenSettings, key: str) -> int:
    address = f"{listen.host}:{listen.port}"
    try:
        if listen.tls is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, _credentials(listen.tls, key)))
    except RuntimeError as error:
        raise bind_problem(listen, key, "gateway") from error


def _credentials(tls: TlsSettings, key: str) -> grpc.ServerCredentials:
    """Raises SettingsError for files that cannot be used."""
    pair = (read_pem(tls.key_file, f"{key}.tls.key_file"), read_pem(tls.cert_file, f"{key}.tls.cert_file"))
    ca = None if tls.client_ca_file is None else read_pem(tls.client_ca_file, f"{key}.tls.client_ca_file")
    return grpc.ssl_server_credentials([pair], ca, require_client_auth=ca is not None)
