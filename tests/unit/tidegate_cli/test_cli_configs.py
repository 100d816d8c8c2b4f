"""The files of a local stack are what the programs' own settings models accept."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Literal

import pytest

from cloud_node.settings import CloudSettings
from edge_node.settings import EdgeSettings
from gateway.settings import GatewaySettings
from serving.settings import load_settings
from tidegate_cli.stack import configs
from tidegate_cli.stack.ports import StackPorts

PORTS = StackPorts(*range(20001, 20009))
KINDS: tuple[Literal["llama_cpp", "oracle"], ...] = ("llama_cpp", "oracle")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With what TOML strings must quote."""
    odd = tmp_path / 'a "quoted" \\ folder'
    odd.mkdir()
    configs.write_secrets(odd)
    return odd


def test_gateway(folder: Path) -> None:
    settings = load_settings(GatewaySettings, configs.gateway(folder, PORTS, "round-robin"), {})
    assert (settings.grpc.port, settings.link.port, settings.http.port) == (20001, 20002, 20003)
    assert settings.store.url == "redis://127.0.0.1:20008/0"
    assert settings.routing.policy == "round-robin"
    assert {rule.tier: rule.cost_per_mtoken for rule in settings.nodes} == {"edge": 0.0, "cloud": 0.6}


@pytest.mark.parametrize("kind", KINDS)
def test_edge(folder: Path, kind: Literal["llama_cpp", "oracle"]) -> None:
    engine = configs.engine_table("edge", kind, folder / "m.gguf")
    settings = load_settings(EdgeSettings, configs.edge(folder, "edge-a", PORTS.edge_a, PORTS, engine), {})
    assert (settings.name, settings.local_api.port) == ("edge-a", 20004)
    assert settings.link.gateways == ("127.0.0.1:20002",)
    assert settings.engine.kind == kind
    if kind == "llama_cpp":
        # One thread per engine: three engines on two cores spin at barriers otherwise.
        assert settings.engine.llama_cpp.threads == 1
        assert settings.engine.model == str(folder / "m.gguf")


@pytest.mark.parametrize("kind", KINDS)
def test_cloud_dials_the_delay(folder: Path, kind: Literal["llama_cpp", "oracle"]) -> None:
    engine = configs.engine_table("cloud", kind, folder / "m.gguf", pacing=0.5)
    settings = load_settings(CloudSettings, configs.cloud(folder, "cloud-1", PORTS, engine), {})
    assert settings.link.gateways == ("127.0.0.1:20007",)
    assert settings.admin is not None
    assert settings.admin.port == 20006
    if kind == "oracle":
        assert (settings.engine.oracle.pacing, settings.engine.oracle.digest) == (0.5, "oracle-Q8_0")


def test_nodes_hold_the_token_of_their_row(folder: Path) -> None:
    gateway = load_settings(GatewaySettings, configs.gateway(folder, PORTS, "tidegate"), {})
    tokens = {rule.tier: rule.join_token.file for rule in gateway.nodes if rule.join_token}
    engine = configs.engine_table("edge", "oracle", None)
    edge = load_settings(EdgeSettings, configs.edge(folder, "e", 1, PORTS, engine), {})
    cloud = load_settings(CloudSettings, configs.cloud(folder, "c", PORTS, engine), {})
    assert edge.link.join_token.file == tokens["edge"]
    assert cloud.link.join_token.file == tokens["cloud"]


def test_secrets_are_private_and_no_two_stacks_share_them(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    configs.write_secrets(other)
    values = [path.read_text() for place in (folder, other) for path in sorted(place.iterdir())]
    assert len(set(values)) == 6
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
