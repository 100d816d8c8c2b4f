from __future__ import annotations

import asyncio

# looptime asks the policy for a loop around sync tests too, and the policy makes one that nobody closes
# unless a loop (or its absence) was set before.
asyncio.set_event_loop(None)
