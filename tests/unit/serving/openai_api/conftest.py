"""Settings of these tests."""

from __future__ import annotations

import asyncio

# pytest-asyncio looks for a current loop before it makes its own; asking would create one nobody closes.
asyncio.set_event_loop(None)
