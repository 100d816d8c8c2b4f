"""A process full of simulated nodes, each with a link of its own.

    python -m benchmarks.link.nodes GATEWAY MODEL TOKENS_PER_S FIRST COUNT

Every cancel that reaches a node goes out as a JSON line
with its time (time.monotonic(), which all processes of a machine share). A line on stdin is answered with how
late the event loop was since the last one.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import sys
import time

from benchmarks.link.simnode import SimNode
from benchmarks.talker import LagWatch, commands, say
from tidegate.link.client import LinkClient, LinkCredentials
from tidegate.routing.domain import AttemptKey

BEAT_S = 1.0
DIAL_GAP_S = 0.01


def tell_cancel(key: AttemptKey) -> None:
    say({"cancel": key.request_id, "at": time.monotonic()})


async def live(number: int, model: str, tokens_per_s: float, gateway: str) -> None:
    """One node: dials at its own moment and beats at its own phase."""
    node = SimNode(f"sim-{number:04d}", (model,), tell_cancel, tokens_per_s)
    epochs = itertools.count(1)
    credentials = LinkCredentials(next_link_epoch=lambda: next(epochs))
    link = LinkClient(node, gateway, credentials, clock=time.monotonic, rng=random.random)
    linking = asyncio.create_task(link.run())
    await asyncio.sleep(random.random() * BEAT_S)
    while not linking.done():
        node.beat()
        # Nodes that share a process would fall into step with each stop of its loop, and never out of it.
        await asyncio.sleep(BEAT_S * random.uniform(1.0, 1.05))
    await linking


async def main(gateway: str, model: str, tokens_per_s: float, first: int, count: int) -> None:
    lag = LagWatch()
    async with asyncio.TaskGroup() as group:
        for number in range(first, first + count):
            group.create_task(live(number, model, tokens_per_s, gateway))
            await asyncio.sleep(DIAL_GAP_S)
        group.create_task(lag.run())
        orders = await commands()
        while await orders.readline():
            # Hundreds of nodes in one process make a collector's pause that no real node would have.
            gc.collect()
            gc.freeze()
            say({"worst_lag_ms": lag.take()})


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])))
