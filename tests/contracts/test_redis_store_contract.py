"""RedisStore keeps the store contract against a real server, and survives what servers do."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis.asyncio as redis
from store_contract import LONG_S, MakeStore, StoreContract, ids, record, turn
from valkey_server import ValkeyServer

from gateway.state import Sessions, Store, StoreError
from gateway.state.records import encode_node
from gateway.state.redis_store import RedisStore


@pytest.fixture(scope="module")
def running() -> Iterator[ValkeyServer]:
    """One server for all tests here; its data is dropped before each."""
    server = ValkeyServer()
    server.start()
    yield server
    server.close()


@pytest.fixture
async def raw(running: ValkeyServer) -> AsyncIterator[Any]:
    """The server as other programs see it."""
    client = redis.Redis.from_url(running.url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def make_store(running: ValkeyServer, raw: Any) -> AsyncIterator[MakeStore]:
    stores: list[Store] = []

    def make() -> Store:
        stores.append(RedisStore(running.url))
        return stores[-1]

    yield make
    for store in stores:
        await store.close()


@pytest.fixture
async def store(make_store: MakeStore) -> Store:
    return make_store()


class TestRedisStore(StoreContract):
    pass


async def test_a_flush_loses_what_was_there_and_nothing_else(store: Store, raw: Any) -> None:
    await store.publish_nodes("gw-1", [record("gw-1", "n1")], LONG_S)
    await store.append_sessions([turn("a")])
    cursor, _ = await store.read_sessions("")
    await raw.flushall()
    assert await store.read_nodes() == ()
    assert await store.read_sessions(cursor) == (cursor, ())
    await store.publish_nodes("gw-1", [record("gw-1", "n1")], LONG_S)
    await store.append_sessions([turn("b")])
    assert await ids(store) == [("gw-1", "n1")]
    _, found = await store.read_sessions(cursor)  # the old cursor still serves
    assert found == (turn("b"),)


async def test_a_killed_server_is_a_store_error_and_its_return_is_noticed() -> None:
    server = ValkeyServer()
    server.start()
    store = RedisStore(server.url)
    try:
        await store.publish_nodes("gw-1", [record("gw-1", "n1")], LONG_S)
        await store.append_sessions([turn("a")])
        cursor, _ = await store.read_sessions("")
        server.kill()
        for _ in range(2):
            for call in every_call(store):
                with pytest.raises(StoreError):
                    await call
        server.start()
        await store.publish_nodes("gw-1", [record("gw-1", "n1")], LONG_S)
        await store.append_sessions([turn("b")])
        assert await ids(store) == [("gw-1", "n1")]
        assert (await store.read_sessions(cursor))[1] == (turn("b"),)
    finally:
        await store.close()
        server.close()


def every_call(store: Store) -> list[Any]:
    return [
        store.publish_nodes("gw-1", [record("gw-1", "n1")], LONG_S),
        store.append_sessions([turn("x")]),
        store.read_nodes(),
        store.read_sessions(""),
    ]


async def test_a_frozen_server_costs_a_timeout_and_answers_are_never_mixed_up(
    store: Store, running: ValkeyServer
) -> None:
    await store.publish_nodes("gw-1", [record("gw-1", "n1")], LONG_S)
    running.freeze()
    try:
        for call in every_call(store):
            started_s = time.monotonic()
            with pytest.raises(StoreError):
                await call
            assert time.monotonic() - started_s < 1.0
    finally:
        running.thaw()
    await asyncio.sleep(0.05)
    assert await ids(store) == [("gw-1", "n1")]
    assert await ids(store) == [("gw-1", "n1")]


async def test_closing_does_not_wait_for_a_frozen_server(running: ValkeyServer, store: Store) -> None:
    await store.read_nodes()
    running.freeze()
    try:
        async with asyncio.timeout(2.0):
            await store.close()
    finally:
        running.thaw()


@pytest.mark.parametrize(
    "value",
    [b"", b"{", b"\xff\xfe\x00", b"[]", b'{"v":2}', b'{"v":1}', b"null", b"[" * 50_000, b"Infinity"],
    ids=range(9),
)
async def test_records_that_are_none_are_left_out(store: Store, raw: Any, value: bytes) -> None:
    await store.publish_nodes("gw-1", [record("gw-1", "n1")], LONG_S)
    await raw.hset("tidegate:nodes:gw-1", "bad", value)
    await raw.xadd("tidegate:sessions", {"s": value})
    await raw.xadd("tidegate:sessions", {"other": "field"})
    await store.append_sessions([turn("a")])
    assert await ids(store) == [("gw-1", "n1")]
    cursor, found = await store.read_sessions("")
    assert found == (turn("a"),)
    assert await store.read_sessions(cursor) == (cursor, ())


async def test_a_record_with_a_wrong_type_inside_is_left_out(store: Store, raw: Any) -> None:
    data = json.loads(encode_node(record("gw-1", "n1")))
    for key in ("node_id", "variants", "speeds", "rtt_ms", "replica_id"):
        await raw.hset("tidegate:nodes:gw-9", key, json.dumps({**data, key: {"a": 1}}))
    await raw.zadd("tidegate:replicas", {"gw-9": 9e15})
    await raw.hset("tidegate:nodes:gw-9", "good", json.dumps(data))
    assert await ids(store) == [("gw-1", "n1")]


async def test_one_replicas_damaged_key_does_not_hide_the_others(store: Store, raw: Any) -> None:
    await store.publish_nodes("gw-1", [record("gw-1", "n1")], LONG_S)
    await raw.set("tidegate:nodes:gw-0", "not a hash")
    await raw.zadd("tidegate:replicas", {"gw-0": 9e15, b"\xff": 9e15})
    assert await ids(store) == [("gw-1", "n1")]


async def test_a_key_of_another_type_is_a_store_error(store: Store, raw: Any) -> None:
    for key in ("tidegate:replicas", "tidegate:sessions"):
        await raw.set(key, "text")
    for call in every_call(store):
        with pytest.raises(StoreError):
            await call


async def test_fleets_with_other_prefixes_do_not_meet(store: Store, running: ValkeyServer) -> None:
    other = RedisStore(running.url, prefix="other:")
    await other.publish_nodes("gw-1", [record("gw-1", "n1")], LONG_S)
    await other.append_sessions([turn("a")])
    assert await store.read_nodes() == ()
    assert await store.read_sessions("") == ("", ())
    await other.close()


async def test_everything_expires_or_is_bounded_and_nothing_private_is_there(store: Store, raw: Any) -> None:
    """Keys and values hold ids, labels and counts: no client's session id, no prompt, no secret."""
    key = b"fleet-secret-0123456789abcdef012"
    sessions = Sessions(key, lambda: 0.0, stricter=max)
    name = sessions.name("acme", "my diary, chapter 7")
    await store.publish_nodes("gw-1", [record("gw-1", "n1")], LONG_S)
    await store.append_sessions([turn(name)])
    dump = b""
    async for found in raw.scan_iter():
        kind = await raw.type(found)
        if kind == b"hash":
            value: Any = await raw.hgetall(found)
            assert 0 < await raw.pttl(found) <= LONG_S * 1000
        elif kind == b"zset":
            value = await raw.zrange(found, 0, -1)
        else:
            assert kind == b"stream"
            value = await raw.xrange(found)
        dump += found + repr(value).encode()
    for private in (b"diary", b"acme", b"fleet-secret"):
        assert private not in dump
    assert name.encode() in dump  # the control


async def test_the_stream_of_sessions_is_capped(store: Store, raw: Any) -> None:
    for start in range(0, 12_000, 2_000):
        await store.append_sessions([turn(f"s{i}") for i in range(start, start + 2_000)])
    assert await raw.xlen("tidegate:sessions") <= 10_500


async def test_a_wrong_password_is_a_store_error_without_it(running: ValkeyServer) -> None:
    store = RedisStore(f"redis://nobody:hunter2@127.0.0.1:{running.port}/0")
    with pytest.raises(StoreError) as caught:
        await store.read_nodes()
    assert "hunter2" not in str(caught.value)
    await store.close()
