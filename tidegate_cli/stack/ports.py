"""Ports of a local stack: the well-known ones, or free ones."""

from __future__ import annotations

import random
import socket
from dataclasses import dataclass, fields
from pathlib import Path

from tidegate_cli.stack.process import ChildFailed

_KERNEL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 10_000
_HIGHEST = 60_000
_TRIES = 2_000


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
    """Ports that were free a moment ago, all different.

    Taken from outside the range the kernel gives to outgoing connections: while a server of the stack is
    down, such a connection could take its port, and a client that dials it could even reach itself.
    """
    low, high = _outside_kernel_range()
    picked: set[int] = set()
    wanted = len(fields(StackPorts))
    for _ in range(_TRIES):
        # Not for secrets: spread, so that stacks started at the same time rarely meet.
        port = random.randint(low, high)
        if port not in picked and _is_free(port):
            picked.add(port)
        if len(picked) == wanted:
            return StackPorts(*picked)
    raise ChildFailed(f"no {wanted} free ports between {low} and {high}")


def check_free(ports: StackPorts) -> None:
    """Raises ChildFailed in one line for the first port that is taken."""
    for field in fields(StackPorts):
        port = getattr(ports, field.name)
        if not _is_free(port):
            raise ChildFailed(
                f"port {port} ({field.name}) is in use: stop the program that holds it, or pass --free-ports"
            )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port whose last connections are only waiting to be forgotten is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _outside_kernel_range() -> tuple[int, int]:
    """The larger side of the kernel's range, both ends inclusive."""
    try:
        first, last = (int(word) for word in _KERNEL_RANGE.read_text().split())
    except (OSError, ValueError):
        first, last = 32_768, _HIGHEST
    below, above = (_LOWEST, first - 1), (last + 1, _HIGHEST)
    side = max(below, above, key=lambda ends: ends[1] - ends[0])
    return side if side[1] - side[0] >= 1_000 else (_LOWEST, _HIGHEST)
