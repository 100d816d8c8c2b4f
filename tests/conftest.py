"""What all tests share."""

from __future__ import annotations

import asyncio

# Imported from a shallow stack on purpose: pytest rewrites this package's many modules while they are
# imported, and Python 3.11.2's parser may fail in a deep one ("AST constructor recursion depth mismatch").
import hypothesis

# Machines that run this are busy: how long an example takes says nothing. Half the usual number of examples
# keeps the whole suite under ten minutes there.
hypothesis.settings.register_profile(
    "tidegate",
    deadline=None,
    max_examples=50,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tidegate")

# The policy's loop of the main thread is never used by tests, and would be reported as unclosed when a
# virtual-time loop takes its place.
asyncio.set_event_loop(None)
