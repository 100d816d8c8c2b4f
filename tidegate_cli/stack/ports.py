"""Ports of a local stack: the well-known ones, or free ones."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from tidegate_cli.stack.process import ChildFailed


@dataclass(frozen=True, slots=True)
class StackPorts:
    """All on 127.0.0.1. `cloud_link` is the delay proxy in front of `link`."""

    grpc: int = 50051
    link: int = 50052
    http: int = 8080
    edge_a: int = 11435
    edge_b: int = 11436
    cloud_admin: int = 11437
    cloud_link: int = 50053
    redis: int = 50054


def free_ports() -> StackPorts:
    """Ports that were free a moment ago; all are held at once, so that they differ."""
    held = [socket.socket() for _ in range(8)]
    try:
        for each in held:
            each.bind(("127.0.0.1", 0))
        return StackPorts(*(each.getsockname()[1] for each in held))
    finally:
        for each in held:
            each.close()


def check_free(ports: StackPorts) -> None:
    """Raises ChildFailed in one line for the first port that is taken."""
    for field in StackPorts.__dataclass_fields__:
        port = getattr(ports, field)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                raise ChildFailed(
                    f"port {port} ({field}) is in use: stop the program that holds it, or pass --free-ports"
                ) from None
