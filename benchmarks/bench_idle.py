"""What the programs hold in memory a minute after one request.

Gateway and edge daemon are real processes with the real llama.cpp engine and the default settings. The daemon
is measured without its engine, which is a child process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

import tidegate
from benchmarks.common import CannotMeasure, Row, row, run
from benchmarks.processes import Programs
from tidegate_cli.models import prepared_models
from tidegate_cli.stack.process import ChildFailed

GATEWAY_BAR_MB = 130.0
DAEMON_BAR_MB = 80.0
ENGINE_TOML = """
[engine]
kind = "llama_cpp"
model = {model}
"""


def memory_mb(pid: int) -> dict[str, float]:
    """RSS, its anonymous part and the proportional share of a process, in MB of 1,000,000 bytes."""
    wanted = {"Rss": "RSS", "Pss": "PSS", "Anonymous": "anonymous"}
    found: dict[str, float] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        if name in wanted:
            found[wanted[name]] = int(rest.split()[0]) * 1024 / 1e6
    return found


def children_of(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(each) for each in found]


def has_loaded(pid: int, library: str) -> bool:
    return library in Path(f"/proc/{pid}/maps").read_text()


async def measure() -> list[Row]:
    parser = argparse.ArgumentParser(description="memory of the programs a minute after one request")
    parser.add_argument("--seconds", type=float, default=60.0, help="wait after the request in s")
    args = parser.parse_args()
    try:
        models = await prepared_models(print)
        async with Programs() as programs:
            gateway = await programs.start_gateway()
            engine = ENGINE_TOML.format(model=json.dumps(str(models.edge)))
            daemon = await programs.start_edge("bench-edge", engine)
            await programs.wait_nodes(1)
            async with tidegate.Client(programs.grpc_address) as client:
                answer = await client.complete("What is a tide gate?", max_tokens=16)
            await asyncio.sleep(args.seconds)
            return rows_of(gateway.pid, daemon.pid, answer.usage.completion_tokens, args.seconds)
    except ChildFailed as error:
        raise CannotMeasure(str(error)) from error


def rows_of(gateway: int, daemon: int, tokens: int, seconds: float) -> list[Row]:
    after = f"{seconds:.0f} s after one request"
    rows = [row("tokens of the request", tokens, "tokens", bar=1, sense=">=")]
    for name, pid, bar in (("gateway", gateway, GATEWAY_BAR_MB), ("edge daemon", daemon, DAEMON_BAR_MB)):
        memory = memory_mb(pid)
        rows.append(row(f"{name}: RSS {after}", memory["RSS"], "MB", bar=bar))
        rows.append(row(f"{name}: anonymous part", memory["anonymous"], "MB"))
        rows.append(row(f"{name}: proportional share (PSS)", memory["PSS"], "MB"))
    loaded = float(has_loaded(gateway, "onnxruntime"))
    rows.append(row("gateway: onnxruntime is loaded", loaded, "", bar=1, sense="=="))
    inside = float(has_loaded(daemon, "libllama"))
    rows.append(row("edge daemon: the engine is in its own process", 1 - inside, "", bar=1, sense="=="))
    for number, pid in enumerate(children_of(daemon)):
        rows.append(row(f"engine process {number}: RSS", memory_mb(pid)["RSS"], "MB"))
    return rows


if __name__ == "__main__":
    sys.exit(run("idle", measure))
