"""No prompt and no answer in any program's log at default level, nor in the shared store."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis.asyncio
from e2e_fleet import ONCE, ask

import tidegate
from tidegate_cli.stack import LocalFleet

MARKER = "zanzibar-marmalade"


async def everything_in_the_store(fleet: LocalFleet) -> bytes:
    store = redis.asyncio.Redis(port=fleet.options.ports.redis)
    found = b""
    try:
        async for key in store.scan_iter():
            found += key + b" " + await store.dump(key) + b"\n"
            if await store.type(key) == b"hash":
                found += repr(await store.hgetall(key)).encode()
            if await store.type(key) == b"string":
                found += await store.get(key) or b""
    finally:
        await store.aclose()
    return found


async def test_prompts_and_answers_are_in_no_log_and_not_in_the_store(fleet: LocalFleet) -> None:
    async with tidegate.Client(fleet.address, retry=ONCE) as client:

        async def private(number: int, **options: Any) -> tidegate.Completion:
            session = f"private {MARKER} {number}"
            return await client.complete(
                f"{MARKER} {number} " * 80, session_id=session, max_tokens=6, **options
            )

        answers = await asyncio.gather(
            private(0),
            private(1, placement="cloud"),
            private(2, data_class="restricted"),
            private(3, stop=f"stop {MARKER}"),
        )
        # The ways that fail are the ones that tend to say too much.
        with pytest.raises(tidegate.TidegateError) as refused:
            await client.complete(f"{MARKER} refused", model=f"no-such-{MARKER[:4]}")
        with pytest.raises(tidegate.TidegateError):
            await client.complete(MARKER, placement="cloud", data_class="restricted")
        await ask(client, f"{MARKER} too slow", max_tokens=500, deadline_s=0.2)
        killed = asyncio.create_task(ask(client, f"{MARKER} killed", placement="edge", max_tokens=200))
        await asyncio.sleep(0.3)
        fleet.children["edge-a"].kill()
        fleet.children["edge-b"].kill()
        assert (await killed).error is not None
    # Sharing rounds come once a second.
    await asyncio.sleep(1.5)
    stored = await everything_in_the_store(fleet)
    assert b"tidegate:" in stored
    logs = {name: child.log_file.read_bytes() for name, child in fleet.children.items()}
    # Positive control: the requests themselves were logged.
    assert answers[0].request_id.encode() in logs["gateway"]
    for secret in (MARKER, *(answer.text for answer in answers)):
        assert secret
        assert [name for name, log in logs.items() if secret.encode() in log] == []
        assert secret.encode() not in stored
    assert MARKER not in str(refused.value)
