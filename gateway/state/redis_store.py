"""The store over Redis or Valkey.

Keys (under `prefix`): `nodes:<replica>` a hash node_id -> record with an expiry; `replicas` a sorted set
replica -> expiry in server milliseconds; `sessions` a capped stream. Timeouts are short and there are no
retries: the caller runs once a second and goes on without the store.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        )

    async def publish_nodes(self, replica_id: str, records: Sequence[NodeRecord], ttl_s: float) -> None:
        key = f"{self._prefix}nodes:{replica_id}"
        replicas = f"{self._prefix}replicas"
        try:
            seconds, micros = await self._redis.time()
            now_ms = seconds * 1000 + micros // 1000
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(key)
                if records:
                    pipe.hset(key, mapping={r.state.node_id: encode_node(r) for r in records})
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
                answers: list[list[str]] = await pipe.execute() if replicas else []
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreError(f"read failed: {error}") from error
        return tuple(r for values in answers for r in _readable(values))

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

    async def close(self) -> None:
        await self._redis.aclose()


def _readable(values: Sequence[str]) -> list[NodeRecord]:
    records = []
    for value in values:
        try:
            records.append(decode_node(value))
        except ValueError:
            continue  # another version's record, or damage: not our node to judge
    return records
