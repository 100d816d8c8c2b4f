"""The configuration files of a local stack, one TOML per program."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tidegate_cli.stack.ports import StackPorts

EngineKind = Literal["llama_cpp", "oracle"]

# An operator's table as it would stand in a real deployment: what a node is follows from its join token.
EDGE_TOKEN = "join-edge"
CLOUD_TOKEN = "join-cloud"
CLOUD_COST = 0.6


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """GGUF files of the two tiers."""

    edge: Path
    cloud: Path


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return path


def secrets(folder: Path) -> None:
    write(folder / "edge.token", EDGE_TOKEN + "\n")
    write(folder / "cloud.token", CLOUD_TOKEN + "\n")
    write(folder / "fleet.secret", "one secret for all replicas of this local stack\n")


def gateway(folder: Path, ports: StackPorts, policy: str) -> Path:
    q = json.dumps
    return write(
        folder / "gateway.toml",
        f"""
replica_id = "gateway"

[grpc]
port = {ports.grpc}

[link]
port = {ports.link}

[http]
port = {ports.http}

[store]
url = "redis://127.0.0.1:{ports.redis}/0"

[fleet_secret]
file = {q(str(folder / "fleet.secret"))}

[routing]
policy = {q(policy)}

[[nodes]]
tier = "edge"
region = "here"
join_token = {{ file = {q(str(folder / "edge.token"))} }}

[[nodes]]
tier = "cloud"
region = "far"
cost_per_mtoken = {CLOUD_COST}
join_token = {{ file = {q(str(folder / "cloud.token"))} }}
""",
    )


def edge(
    folder: Path, name: str, api_port: int, ports: StackPorts, engine: EngineKind, model: Path | None
) -> Path:
    q = json.dumps
    return write(
        folder / f"{name}.toml",
        f"""
name = {q(name)}
state_dir = {q(str(folder / name))}

[local_api]
port = {api_port}

[link]
gateways = ["127.0.0.1:{ports.link}"]
join_token = {{ file = {q(str(folder / "edge.token"))} }}

{_engine(engine, model, prefill=600, decode=[[1, 60.0], [4, 30.0]], quantization="Q4_0", perplexity=13.8)}
""",
    )


def cloud(folder: Path, name: str, ports: StackPorts, engine: EngineKind, model: Path | None) -> Path:
    """Reaches the gateway through the delay proxy."""
    q = json.dumps
    return write(
        folder / f"{name}.toml",
        f"""
name = {q(name)}
state_dir = {q(str(folder / name))}

[admin]
port = {ports.cloud_admin}

[link]
gateways = ["127.0.0.1:{ports.cloud_link}"]
join_token = {{ file = {q(str(folder / "cloud.token"))} }}

{_engine(engine, model, prefill=900, decode=[[1, 80.0], [4, 60.0]], quantization="Q8_0", perplexity=11.3)}
""",
    )


def _engine(
    kind: EngineKind,
    model: Path | None,
    *,
    prefill: int,
    decode: list[list[float]],
    quantization: str,
    perplexity: float,
) -> str:
    if kind == "llama_cpp":
        return f"""[engine]
kind = "llama_cpp"
model = {json.dumps(str(model))}
slots = 4
context_tokens = 2048
"""
    return f"""[engine]
kind = "oracle"
slots = 4

[engine.oracle]
digest = {json.dumps("oracle-" + quantization)}
quantization = {json.dumps(quantization)}
perplexity = {perplexity}
prefill_tokens_per_s = {prefill}
decode = {json.dumps(decode)}
"""
