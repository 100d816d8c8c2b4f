"""The program inside one event loop, with the oracle engine and a gateway that is not there."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from cloud_node.__main__ import main
from cloud_node.app import run_cloud
from cloud_node.settings import CloudSettings
from serving.settings import SettingsError, load_settings
from serving.startup import ProgramArgs, ProgramError

WAIT_S = 10.0


def settings(tmp_path: Path, **more: str) -> CloudSettings:
    environ = {
        "STATE_DIR": str(tmp_path / "state"),
        "ENGINE__KIND": "oracle",
        "LINK__GATEWAYS": "127.0.0.1:1",
        **more,
    }
    return load_settings(CloudSettings, None, {f"TIDEGATE_CLOUD__{k}": v for k, v in environ.items()})


def extra(record: logging.LogRecord, name: str) -> str:
    return str(getattr(record, name))


@asynccontextmanager
async def running(given: CloudSettings, caplog: pytest.LogCaptureFixture) -> AsyncIterator[str]:
    """The base URL of the admin listener, "" without one, once the engine is ready."""
    caplog.set_level(logging.INFO)
    stop = asyncio.Event()
    task = asyncio.create_task(run_cloud(given, ProgramArgs(), stop))
    try:
        async with asyncio.timeout(WAIT_S):
            while not any(r.message == "engine ready" for r in caplog.records):
                assert not task.done(), task.exception()
                await asyncio.sleep(0.005)
        up = [extra(r, "address") for r in caplog.records if r.message == "admin listener is up"]
        yield f"http://{up[0]}" if up else ""
    finally:
        stop.set()
        await asyncio.wait_for(task, WAIT_S)


async def ask(url: str, key: str = "") -> int:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        return response.status


async def test_health_and_metrics(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(settings(tmp_path, ADMIN__PORT="0"), caplog) as url:
        for path in ("/healthz", "/readyz", "/metrics"):
            assert await ask(url + path) == 200
        assert await ask(url + "/v1/chat/completions") == 404


async def test_metrics_want_the_key_when_there_is_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = tmp_path / "key"
    secret.write_text("admin-key\n")
    secret.chmod(0o600)
    given = settings(tmp_path, ADMIN__PORT="0", ADMIN__KEY__FILE=str(secret))
    async with running(given, caplog) as url:
        assert await ask(url + "/metrics") == 401
        assert await ask(url + "/metrics", "wrong") == 401
        assert await ask(url + "/metrics", "admin-key") == 200
        assert await ask(url + "/healthz") == 200


async def test_without_an_admin_listener(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(settings(tmp_path), caplog) as url:
        assert url == ""


async def test_gateways_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"link\.gateways"):
        await run_cloud(settings(tmp_path, LINK__GATEWAYS=""), ProgramArgs(), asyncio.Event())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"ADMIN__HOST": "0.0.0.0", "ADMIN__PORT": "0"}, "admin: refusing"),
        ({"LINK__GATEWAYS": "gateway.example:50052"}, "link.gateways: refusing"),
    ],
)
async def test_open_doors_are_refused(tmp_path: Path, more: dict[str, str], words: str) -> None:
    with pytest.raises(ProgramError, match=words):
        await run_cloud(settings(tmp_path, **more), ProgramArgs(), asyncio.Event())


@pytest.mark.parametrize(("url", "warned"), [("http://127.0.0.1:9/v1", False), ("http://192.0.2.1:9", True)])
async def test_a_key_in_the_clear_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, url: str, warned: bool
) -> None:
    given = settings(
        tmp_path,
        ENGINE__KIND="openai_http",
        ENGINE__MODEL_NAME="m",
        ENGINE__OPENAI_HTTP__BASE_URL=url,
        ENGINE__OPENAI_HTTP__API_KEY__FILE=str(tmp_path / "none"),
    )
    with pytest.raises(SettingsError, match="cannot read the secret"):
        await run_cloud(given, ProgramArgs(), asyncio.Event())
    assert ("in the clear" in caplog.text) == warned


def test_check_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "cloud.toml"
    engine = f"[engine.openai_http]\nbase_url = {json.dumps('http://localhost:8000/v1')}\n"
    config.write_text(f'[link]\ngateways = ["localhost:50052"]\n{engine}')
    assert main(["--config", str(config), "--check-config"]) == 0
    assert "settings are fine" in capsys.readouterr().out
    config.write_text(f'{engine}[admin.key]\nfile = "{tmp_path}/none"\n')
    assert main(["--config", str(config), "--check-config"]) == 2
    gateways, key = capsys.readouterr().err.splitlines()
    assert "link.gateways: must name" in gateways
    assert "cannot read the secret" in key
    config.write_text("[engine.openai_http]\nbase_ulr = 1\n")
    assert main(["--config", str(config)]) == 2
    assert 'did you mean "base_url"?' in capsys.readouterr().err
