"""What all tests share."""

from __future__ import annotations

import asyncio

# The policy's loop of the main thread is never used by tests, and would be reported as unclosed when a
# virtual-time loop takes its place.
asyncio.set_event_loop(None)
