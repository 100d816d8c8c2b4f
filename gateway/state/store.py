"""The Store seam: what replicas share. A hint of the fleet, never on a request's path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from gateway.state.records import NodeRecord, SessionRecord


class StoreError(Exception):
    """The store did not answer in time or answered nonsense; the caller goes on with what it knows."""


class Store(Protocol):
    """Implementations pass tests/contracts/store_contract.py. Every method raises StoreError."""

    async def publish_nodes(self, replica_id: str, records: Sequence[NodeRecord], ttl_s: float) -> None:
        """Replaces what this replica said about its linked nodes; it is forgotten after ttl_s."""
        ...

    async def read_nodes(self) -> tuple[NodeRecord, ...]:
        """All replicas' nodes that are not forgotten; records that cannot be read are left out."""
        ...

    async def append_sessions(self, records: Sequence[SessionRecord]) -> None: ...

    async def read_sessions(self, after: str) -> tuple[str, tuple[SessionRecord, ...]]:
        """Session records appended after the cursor, and the next cursor; "" starts at the oldest kept.

        A cursor from before a flush is valid: reading goes on with what is there.
        """
        ...

    async def publish_learned(self, records: Mapping[str, str]) -> None:
        """What was learned, by name; a newer record takes an older one's place. Kept for about an hour."""
        ...

    async def read_learned(self) -> dict[str, str]:
        """All that replicas published of late, as it was written."""
        ...

    async def close(self) -> None: ...
