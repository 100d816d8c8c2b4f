"""The store over Redis or Valkey.

Keys (under `prefix`): `nodes:<replica>` a hash node_id -> record with an expiry; `replicas` a sorted set
replica -> expiry in server milliseconds; `sessions` a capped stream; `learned:<span>` a hash
name -> record for half an hour of the server's clock. Timeouts are short and there are no
retries: the caller runs once a second and goes on without the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway.state.records import (
    NodeRecord,
    SessionRecord,
    decode_node,
    decode_session,
    encode_node,
    encode_session,
)
from gateway.state.store import StoreError

KEPT_SESSIONS = 10_000
READ_AT_ONCE = 1_000
KEPT_LEARNED = 20_000
READ_LEARNED_AT_ONCE = 200
LEARNED_FOR_S = 1_800
# Encoding a record takes about 30 us, decoding one 40: a thousand in one go would hold up every stream.
RECORDS_AT_ONCE = 25


class RedisStore:
    """Implements Store. `url` as redis-py takes it; `timeout_s` bounds every command."""

    def __init__(self, url: str, *, prefix: str = "tidegate:", timeout_s: float = 0.2) -> None:
        self._prefix = prefix
        self._redis: redis.Redis = redis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
            encoding_errors="replace",  # bytes that are no text make a record that is none, not an error
        )

    async def publish_nodes(self, replica_id: str, records: Sequence[NodeRecord], ttl_s: float) -> None:
        key = f"{self._prefix}nodes:{replica_id}"
        replicas = f"{self._prefix}replicas"
        encoded = await _encoded(records)
        try:
            seconds, micros = await self._redis.time()
            now_ms = seconds * 1000 + micros // 1000
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(key)
                if encoded:
                    pipe.hset(key, mapping=encoded)
                    pipe.pexpire(key, int(ttl_s * 1000))
                pipe.zadd(replicas, {replica_id: now_ms + ttl_s * 1000})
                pipe.zremrangebyscore(replicas, 0, now_ms)
                await pipe.execute()
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreError(f"publish failed: {error}") from error

    async def read_nodes(self) -> tuple[NodeRecord, ...]:
        try:
            replicas: Any = await self._redis.zrange(f"{self._prefix}replicas", 0, -1)
            async with self._redis.pipeline(transaction=False) as pipe:
                for replica_id in replicas:
                    pipe.hvals(f"{self._prefix}nodes:{replica_id!s}")
                # One replica's damaged key must not hide the others' nodes.
                answers: list[Any] = await pipe.execute(raise_on_error=False) if replicas else []
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreError(f"read failed: {error}") from error
        return await _readable([value for found in answers if isinstance(found, list) for value in found])

    async def append_sessions(self, records: Sequence[SessionRecord]) -> None:
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for record in records:
                    pipe.xadd(
                        f"{self._prefix}sessions",
                        {"s": encode_session(record)},
                        maxlen=KEPT_SESSIONS,
                        approximate=True,
                    )
                if records:
                    await pipe.execute()
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreError(f"append failed: {error}") from error

    async def read_sessions(self, after: str) -> tuple[str, tuple[SessionRecord, ...]]:
        stream = f"{self._prefix}sessions"
        try:
            entries: Any = await self._redis.xrange(stream, f"({after}" if after else "-", count=READ_AT_ONCE)
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreError(f"read failed: {error}") from error
        cursor, found = after, []
        for entry_id, fields in entries:
            cursor = entry_id
            try:
                found.append(decode_session(fields["s"]))
            except (ValueError, KeyError):
                continue
        return cursor, tuple(found)

    async def publish_learned(self, records: Mapping[str, str]) -> None:
        mapping: dict[Any, Any] = dict(records)
        try:
            key, _ = await self._learned_keys()
            if not records or await self._size(key) > KEPT_LEARNED:
                return
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(key, mapping=mapping)
                pipe.expire(key, 2 * LEARNED_FOR_S)
                await pipe.execute()
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreError(f"publish failed: {error}") from error

    async def read_learned(self) -> dict[str, str]:
        found: dict[str, str] = {}
        try:
            current, before = await self._learned_keys()
            for key in (before, current):
                cursor: Any = 0
                page: Any
                while True:
                    cursor, page = await self._redis.hscan(key, cursor, count=READ_LEARNED_AT_ONCE)
                    found.update(page)
                    if not int(cursor) or len(found) > KEPT_LEARNED:
                        break
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreError(f"read failed: {error}") from error
        return found

    async def _learned_keys(self) -> tuple[str, str]:
        """Of this span of the server's time and of the one before: what nobody renews falls away."""
        seconds, _ = await self._redis.time()
        span = seconds // LEARNED_FOR_S
        return f"{self._prefix}learned:{span}", f"{self._prefix}learned:{span - 1}"

    async def _size(self, key: str) -> int:
        size: Any = self._redis.hlen(key)
        return int(await size)

    async def close(self) -> None:
        await self._redis.aclose()


async def _encoded(records: Sequence[NodeRecord]) -> dict[Any, Any]:
    encoded: dict[Any, Any] = {}
    for done, record in enumerate(records, 1):
        encoded[record.state.node_id] = encode_node(record)
        if done % RECORDS_AT_ONCE == 0:
            await asyncio.sleep(0)
    return encoded


async def _readable(values: Sequence[str]) -> tuple[NodeRecord, ...]:
    records = []
    for done, value in enumerate(values, 1):
        try:
            records.append(decode_node(value))
        except ValueError:
            pass  # another version's record, or damage: not our node to judge
        if done % RECORDS_AT_ONCE == 0:
            await asyncio.sleep(0)
    return tuple(records)
