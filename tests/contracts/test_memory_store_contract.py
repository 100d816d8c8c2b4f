"""MemoryStore keeps the store contract; it is shared by being the same object."""

from __future__ import annotations

import time

import pytest
from store_contract import MakeStore, StoreContract

from gateway.state.memory_store import MemoryStore


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        store = MemoryStore(time.monotonic)
        return lambda: store
