"""Ports of a local stack."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import pytest

from tidegate_cli.stack import ChildFailed
from tidegate_cli.stack.ports import StackPorts, check_free, free_ports


def test_free_ports_differ_and_are_free() -> None:
    ports = free_ports()
    assert len(set(dataclasses.astuple(ports))) == 8
    check_free(ports)


def test_free_ports_are_not_those_of_outgoing_connections() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    if last - first > 50_000:
        pytest.skip("this kernel gives all ports to outgoing connections")
    assert not [port for port in dataclasses.astuple(free_ports()) if first <= port <= last]


@pytest.mark.parametrize("name", ["grpc", "redis"])
def test_taken_port_is_named_in_one_line(name: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        ports = dataclasses.replace(free_ports(), **{name: port})
        with pytest.raises(ChildFailed, match=rf"^port {port} \({name}\) is in use: .*--free-ports$"):
            check_free(ports)
    check_free(ports)


def test_well_known_ports_are_the_documented_ones() -> None:
    ports = StackPorts()
    assert (ports.grpc, ports.link, ports.http, ports.edge_a) == (50051, 50052, 8080, 11435)
    assert len(set(dataclasses.astuple(ports))) == 8
