"""`tidegate-gateway --check-config` tells of every part and writes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.app import check
from gateway.settings import GatewaySettings
from serving.settings import SettingsError, load_settings
from serving.startup import ProgramArgs


def loaded(folder: Path, text: str) -> GatewaySettings:
    config = folder / "gateway.toml"
    config.write_text(text)
    return load_settings(GatewaySettings, config, {})


def test_every_part_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    text = f"""
[fleet_secret]
file = "{tmp_path}/secret"
[grpc.tls]
cert_file = "{tmp_path}/cert"
key_file = "{tmp_path}/key"
[[clients]]
name = "a"
key = {{ file = "{tmp_path}/a" }}
[[clients]]
name = "b"
key = {{ file = "{tmp_path}/b" }}
[[nodes]]
tier = "edge"
join_token = {{ file = "{tmp_path}/token" }}
"""
    with pytest.raises(SettingsError) as found:
        check(loaded(tmp_path, text), ProgramArgs())
    for word, problem in zip(("secret", "a", "b", "token", "cert"), found.value.problems, strict=True):
        assert f"{tmp_path}/{word}: No such file" in problem


def test_the_outcome_log_is_looked_at_and_not_made(tmp_path: Path) -> None:
    text = '[quality]\noutcome_log = "{}/new/folder/outcomes.jsonl"\n'
    check(loaded(tmp_path, text.format(tmp_path)), ProgramArgs())
    assert not (tmp_path / "new").exists()
    with pytest.raises(SettingsError, match="outcome_log"):
        check(loaded(tmp_path, text.format(tmp_path / "gateway.toml")), ProgramArgs())
