"""The local stack: Redis-protocol server, gateway, two edge nodes, one cloud node behind a delay."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tidegate
from tidegate_cli.stack import configs, delay_proxy
from tidegate_cli.stack.configs import EngineKind, ModelFiles
from tidegate_cli.stack.ports import StackPorts, check_free
from tidegate_cli.stack.preflight import check_machine, valkey_binary
from tidegate_cli.stack.process import Child, ChildFailed, Guard, python_module, python_script

READY_S = 60.0
# Ctrl-C ends everything within 5 s, with room for a busy machine.
STOP_S = 2.5
EDGES = ("edge-a", "edge-b")
CLOUD = "cloud-1"
ONCE = tidegate.RetryPolicy(attempts=1)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """`cloud_delay_ms` is the round trip added between cloud node and gateway.

    `pacing` multiplies every duration of the oracle engine; real engines take the time they take.
    """

    ports: StackPorts = field(default_factory=StackPorts)
    engine: EngineKind = "llama_cpp"
    models: ModelFiles | None = None
    policy: str = "tidegate"
    cloud_delay_ms: float = 40.0
    pacing: float = 1.0


class LocalFleet:
    """Owns its children and a private folder for their configuration, state and logs."""

    def __init__(self, options: FleetOptions, say: Say) -> None:
        self.options = options
        self._say = say
        self.folder = Path(tempfile.mkdtemp(prefix="tidegate-"))
        self.children: dict[str, Child] = {}
        self._guard: Guard | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.options.ports.grpc}"

    async def start(self) -> None:
        """Brings everything up. Raises ChildFailed; what was started is then the caller's to stop()."""
        check_machine(self.options.engine)
        check_free(self.options.ports)
        configs.write_secrets(self.folder)
        self._guard = Guard()
        self._start_delay()
        # All at once: nodes load their models meanwhile, and dial until the gateway is there.
        await together(
            self.start_redis(),
            self.start_gateway(self.options.policy),
            *(self.start_edge(name) for name in EDGES),
            self.start_cloud(),
        )
        await self.wait_whole()

    async def start_redis(self) -> None:
        """The embedded Redis-protocol server, nothing on disk."""
        port = self.options.ports.redis
        command = [str(valkey_binary()), "--port", str(port), "--bind", "127.0.0.1"]
        command += ["--save", "", "--dir", str(self.folder)]
        child = self._spawn("redis", command)
        await child.wait_ready(lambda: _accepts(port), READY_S)
        self._say(f"Redis-protocol server on port {port}")

    async def start_gateway(self, policy: str) -> None:
        await self._run_gateway(policy)
        ports = self.options.ports
        self._say(f"gateway: gRPC on port {ports.grpc}, OpenAI API on port {ports.http}, policy {policy}")

    async def _run_gateway(self, policy: str) -> None:
        ports = self.options.ports
        config = configs.gateway(self.folder, ports, policy)
        child = self._spawn("gateway", python_module("gateway", "--config", str(config)))
        await child.wait_ready(lambda: _accepts(ports.grpc), READY_S)

    async def restart_gateway(self, policy: str) -> None:
        """With another policy; returns once it has every node ready again."""
        await self.children["gateway"].stop(STOP_S)
        await self._run_gateway(policy)
        await self.wait_whole()

    def _start_delay(self) -> None:
        ports = self.options.ports
        args = (str(ports.cloud_link), str(ports.link), str(self.options.cloud_delay_ms / 2))
        self._spawn("delay", python_script(Path(delay_proxy.__file__), *args))

    async def start_edge(self, name: str) -> None:
        """Ready means that the device's own API serves."""
        ports = self.options.ports
        port = ports.edge_a if name == "edge-a" else ports.edge_b
        model = self.options.models.edge if self.options.models else None
        engine = configs.engine_table("edge", self.options.engine, model, self.options.pacing)
        config = configs.edge(self.folder, name, port, ports, engine)
        child = self._spawn(name, python_module("edge_node", "--config", str(config)))
        await child.wait_ready(lambda: _http_ready(port), READY_S)
        self._say(f"{name}: local OpenAI API on port {port}")

    async def start_cloud(self) -> None:
        ports = self.options.ports
        model = self.options.models.cloud if self.options.models else None
        engine = configs.engine_table("cloud", self.options.engine, model, self.options.pacing)
        config = configs.cloud(self.folder, CLOUD, ports, engine)
        child = self._spawn(CLOUD, python_module("cloud_node", "--config", str(config)))
        await child.wait_ready(lambda: _http_ready(ports.cloud_admin), READY_S)
        delay = self.options.cloud_delay_ms
        self._say(f"{CLOUD}: behind an injected round trip of {delay:.0f} ms")

    async def wait_whole(self, timeout_s: float = 20.0) -> float:
        """Until the gateway has every node ready; returns the seconds it took. Raises ChildFailed."""
        return await self.wait_ready_nodes({*EDGES, CLOUD}, timeout_s)

    async def wait_ready_nodes(self, names: set[str], timeout_s: float) -> float:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        seen: set[str] = set()
        while loop.time() - started_s < timeout_s:
            seen = await self.ready_nodes()
            if seen == names:
                return loop.time() - started_s
            await asyncio.sleep(0.05)
        raise ChildFailed(
            f"the gateway has {sorted(seen)} ready after {timeout_s:.0f} s, not {sorted(names)}"
        )

    async def ready_nodes(self) -> set[str]:
        """Names of the nodes that could take work now; empty while the gateway does not answer."""
        try:
            async with tidegate.Client(self.address, retry=ONCE) as client:
                nodes = await client.nodes(deadline_s=2.0)
        except tidegate.TidegateError:
            return set()
        return {n.name for n in nodes if n.health is tidegate.Health.READY and n.linked_here}

    async def stop(self, *, keep_logs: bool = False) -> None:
        """Ends all children at once, within about STOP_S, and removes the folder unless told to keep it."""
        await asyncio.gather(*(child.stop(STOP_S) for child in self.children.values()))
        if self._guard is not None:
            self._guard.close()
        if not keep_logs:
            shutil.rmtree(self.folder, ignore_errors=True)

    def dead(self) -> list[str]:
        return [name for name, child in self.children.items() if not child.alive]

    def _spawn(self, name: str, command: list[str]) -> Child:
        if name in self.children:
            # What a killed one may have left running would hold its ports and its identity.
            before = self.children[name]
            before.kill_session()
            if self._guard is not None:
                self._guard.forget(before)
        child = Child(name, command, self.folder / f"{name}.log", _environ())
        self.children[name] = child
        child.start()
        if self._guard is not None:
            self._guard.watch(child)
        return child


async def together(*steps: Coroutine[Any, Any, None]) -> None:
    """All at once; the first failure ends the others and is raised."""
    tasks = [asyncio.create_task(step) for step in steps]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _environ() -> dict[str, str]:
    """Ours without settings of other Tidegate programs: a stack is what its files say."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}


# asyncio.timeout, not wait_for: before Python 3.12 that one can lose a cancellation when a connect fails in
# the same instant, and Ctrl-C would then wait for the whole start.
async def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.setblocking(False)
        try:
            async with asyncio.timeout(1.0):
                await asyncio.get_running_loop().sock_connect(probe, ("127.0.0.1", port))
        except OSError:
            return False
    return True


async def _http_ready(port: int) -> bool:
    """GET /readyz answered 200."""
    try:
        async with asyncio.timeout(3.0):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                status = await reader.readline()
            finally:
                writer.close()
    except OSError:
        return False
    return b" 200 " in status
