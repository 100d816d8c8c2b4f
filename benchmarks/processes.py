"""Real programs for the benchmarks: each in its own session, on free ports, ended by its PID."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import tempfile
from pathlib import Path

import tidegate
from tidegate_cli.stack.ports import StackPorts, free_ports
from tidegate_cli.stack.process import Child, ChildFailed, python_module

READY_S = 60.0
STOP_S = 3.0


def clean_environ() -> dict[str, str]:
    """The environment without settings of ours that an operator's shell may carry."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}


class Programs:
    """Owns a folder and the programs started from it. An async context manager."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tidegate-bench-"))
        self.ports: StackPorts = free_ports()
        self.children: dict[str, Child] = {}

    async def __aenter__(self) -> Programs:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.gather(*(child.stop(STOP_S) for child in self.children.values()))
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.ports.grpc}"

    @property
    def link_address(self) -> str:
        return f"127.0.0.1:{self.ports.link}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.http}"

    async def start_gateway(self, extra_toml: str = "") -> Child:
        """A gateway whose state is in its own process; nodes without a token join as edge nodes."""
        config = f"""
default_tier = "edge"
[grpc]
port = {self.ports.grpc}
[link]
port = {self.ports.link}
[http]
port = {self.ports.http}
{extra_toml}
"""
        child = self._spawn("gateway", config)
        await child.wait_ready(lambda: _accepts(self.ports.grpc), READY_S)
        return child

    async def start_edge(self, name: str, engine_toml: str, *, linked: bool = True) -> Child:
        """The device daemon, linked to the gateway or alone; returns once its engine serves."""
        port = self.ports.edge_a
        gateways = [self.link_address] if linked else []
        config = f"""
name = {json.dumps(name)}
state_dir = {json.dumps(str(self.folder / name))}
[local_api]
port = {port}
[link]
gateways = {json.dumps(gateways)}
{engine_toml}
"""
        child = self._spawn(name, config, module="edge_node")
        await child.wait_ready(lambda: _http_ready(port), READY_S)
        return child

    async def wait_nodes(self, count: int, timeout_s: float = READY_S) -> None:
        """Until the gateway has `count` ready nodes. Raises ChildFailed."""
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        async with tidegate.Client(self.grpc_address) as client:
            while True:
                nodes = await client.nodes(deadline_s=10.0)
                ready = sum(node.health is tidegate.Health.READY for node in nodes)
                if ready >= count:
                    return
                if asyncio.get_running_loop().time() > deadline_s:
                    raise ChildFailed(f"{ready} of {count} nodes were ready after {timeout_s:.0f} s")
                await asyncio.sleep(0.2)

    def spawn(self, name: str, command: list[str], *, compiled: bool = False) -> Child:
        """`compiled`: with the benchmark's own routing code, as gateways have it. Nodes run the sources."""
        environ = clean_environ()
        if not compiled:
            environ.pop("PYTHONPATH", None)
        child = Child(name, command, self.folder / f"{name}.log", environ)
        self.children[name] = child
        child.start()
        return child

    def _spawn(self, name: str, config: str, module: str = "") -> Child:
        path = self.folder / f"{name}.toml"
        path.write_text(config, encoding="utf-8")
        command = python_module(module or name, "--config", str(path))
        return self.spawn(name, command, compiled=name == "gateway")


async def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.setblocking(False)
        try:
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(probe, ("127.0.0.1", port)), 1.0)
        except (OSError, TimeoutError):
            return False
    return True


async def _http_ready(port: int) -> bool:
    """GET /readyz answered 200."""
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), 1.0)
    except (OSError, TimeoutError):
        return False
    try:
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        return b" 200 " in await asyncio.wait_for(reader.readline(), 2.0)
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()
