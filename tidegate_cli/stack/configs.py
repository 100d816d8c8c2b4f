"""The configuration files of a local stack, one TOML per program."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tidegate_cli.stack.ports import StackPorts

EngineKind = Literal["llama_cpp", "oracle"]

CLOUD_COST = 0.6


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """GGUF files of the two tiers."""

    edge: Path
    cloud: Path


def write(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    return path


def write_secrets(folder: Path) -> None:
    """Join tokens as in a real deployment: what a node is follows from the one it holds."""
    for name in ("edge.token", "cloud.token", "fleet.secret"):
        write(folder / name, secrets.token_urlsafe(24) + "\n")


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


def edge(folder: Path, name: str, api_port: int, ports: StackPorts, engine: str) -> Path:
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

{engine}
""",
    )


def cloud(folder: Path, name: str, ports: StackPorts, engine: str) -> Path:
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

{engine}
""",
    )


@dataclass(frozen=True, slots=True)
class OracleShape:
    """What the oracle pretends to be, close to the real model of the tier."""

    quantization: str
    perplexity: float
    prefill_tokens_per_s: int
    decode: str

    @property
    def digest(self) -> str:
        return f"oracle-{self.quantization}"


ORACLES = {
    "edge": OracleShape("Q4_0", 13.8, 600, "[[1, 60.0], [4, 30.0]]"),
    "cloud": OracleShape("Q8_0", 11.3, 900, "[[1, 80.0], [4, 60.0]]"),
}


def engine_table(tier: str, kind: EngineKind, model: Path | None, pacing: float = 1.0) -> str:
    """The TOML table of the engine of a tier's nodes."""
    if kind == "llama_cpp":
        return f"""[engine]
kind = "llama_cpp"
model = {json.dumps(str(model))}
slots = 4
context_tokens = 2048

[engine.llama_cpp]
threads = 1
tune_after_s = 0
"""
    shape = ORACLES[tier]
    return f"""[engine]
kind = "oracle"
slots = 4

[engine.oracle]
digest = {json.dumps(shape.digest)}
quantization = {json.dumps(shape.quantization)}
perplexity = {shape.perplexity}
prefill_tokens_per_s = {shape.prefill_tokens_per_s}
decode = {shape.decode}
pacing = {pacing}
"""
