"""The examples run as they are written, against a fleet and against nothing."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tidegate_cli.stack import LocalFleet

EXAMPLES = Path(__file__).parents[2] / "examples"


async def run(name: str, environ: Mapping[str, str], *args: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "error", str(EXAMPLES / name), *args),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(os.environ) | dict(environ),
        start_new_session=True,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 40.0)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def addresses(fleet: LocalFleet) -> dict[str, str]:
    url = f"http://127.0.0.1:{fleet.options.ports.http}/v1"
    return {"TIDEGATE_ADDRESS": fleet.address, "OPENAI_BASE_URL": url}


async def test_chat_stream(fleet: LocalFleet) -> None:
    code, out, err = await run("chat_stream.py", addresses(fleet), "Why is the sea salty?")
    assert (code, err) == (0, "")
    assert re.search(r"^\[edge-[ab] \(edge\), first token after \d+ ms of \d+ predicted, budget ", out, re.M)


async def test_budget_and_session(fleet: LocalFleet) -> None:
    code, out, err = await run("budget_and_session.py", addresses(fleet))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("1 ms: refused; asking for ")
    assert re.match(r"restricted: edge-[ab], ", lines[2])
    first, second = lines[3:]
    assert first.split(",")[0].split(": ")[1] == second.split(",")[0].split(": ")[1]
    assert re.search(r" [1-9]\d* of \d+ prompt tokens warm", second)


async def test_openai_client(fleet: LocalFleet) -> None:
    code, out, err = await run("openai_client.py", addresses(fleet))
    assert (code, err) == (0, "")
    assert out.startswith("models: ")
    assert len(out.splitlines()[1].split()) == 32


@pytest.mark.parametrize("name", ["chat_stream.py", "budget_and_session.py", "openai_client.py"])
async def test_without_a_gateway_they_say_so(name: str) -> None:
    nobody = {"TIDEGATE_ADDRESS": "127.0.0.1:1", "OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}
    code, _, err = await run(name, nobody)
    assert code == 1
    assert "Traceback" not in err
    assert err.startswith(("Unavailable: ", "APIConnectionError: "))


def test_every_example_is_tested() -> None:
    told = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in told] == []
