"""What a node knows of its electricity, for its heartbeats: looked at every few seconds, off the event loop.

What work draws is the difference between two means: of looks that found the engine computing at both their
ends, and of those that found it idle. It is unknown until both were seen.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving.node.power_files import (
    MAX_WATTS,
    POWERCAP,
    SUPPLIES,
    Energy,
    Supplies,
    read_energy,
    read_supplies,
)
from tidegate.routing.domain import Power

_LOG = logging.getLogger(__name__)

WEIGHT = 0.2
# Of each kind, before the difference says anything.
ENOUGH = 3


@dataclass(frozen=True, slots=True)
class PowerOptions:
    """`work_w` is known from elsewhere where it is set; `metered` is the operator's word."""

    interval_s: float = 5.0
    metered: bool = False
    work_w: float | None = None
    supplies: Path = SUPPLIES
    powercap: Path = POWERCAP


class _Mean:
    """Of the last looks, in watts."""

    __slots__ = ("count", "watts")

    def __init__(self) -> None:
        self.count = 0
        self.watts = 0.0

    def add(self, watts: float) -> None:
        self.count += 1
        # The first ones weigh alike, so that none of them sticks.
        self.watts += max(WEIGHT, 1.0 / self.count) * (watts - self.watts)


class PowerWatch:
    """`is_busy` says whether the engine computes now. Reading blocks for a moment: run() does it aside."""

    def __init__(
        self,
        options: PowerOptions,
        is_busy: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._is_busy = is_busy
        self._clock = clock
        self._energy = Energy()
        self._looked_s = 0.0
        self._was_busy: bool | None = None
        self._busy, self._idle = _Mean(), _Mean()
        self._power = Power(work_w=options.work_w, metered=options.metered)

    def now(self) -> Power | None:
        """What the last look found; None where nothing is known."""
        return None if self._power == Power() else self._power

    async def run(self) -> None:
        """Never ends; with an interval of 0 nothing is read. No file is worth the node: what cannot be
        made sense of is said once, and looked at again."""
        told = False
        while True:
            if self._options.interval_s <= 0.0:
                await asyncio.Event().wait()
            busy = self._is_busy()
            try:
                self._take(busy, *await asyncio.to_thread(self._read))
            except Exception:  # noqa: BLE001 - told once, not every few seconds
                if not told:
                    _LOG.exception("what is said of this device's power cannot be made sense of")
                told = True
            await asyncio.sleep(self._options.interval_s)

    def look(self) -> None:
        """One look, at once."""
        busy = self._is_busy()
        self._take(busy, *self._read())

    def _read(self) -> tuple[Supplies, Energy, float]:
        supplies = read_supplies(self._options.supplies)
        return supplies, read_energy(self._options.powercap), self._clock()

    def _take(self, busy: bool, supplies: Supplies, energy: Energy, now_s: float) -> None:
        draw_w = supplies.discharge_w
        if draw_w is None and now_s > self._looked_s:
            joules = energy.joules_since(self._energy)
            draw_w = None if joules is None else joules / (now_s - self._looked_s)
            if draw_w is not None and not 0.0 <= draw_w <= MAX_WATTS:
                draw_w = None
        self._energy, self._looked_s = energy, now_s
        if draw_w is not None and busy == self._was_busy:
            (self._busy if busy else self._idle).add(draw_w)
        self._was_busy = busy
        self._power = Power(
            on_battery=supplies.on_battery,
            battery_share=supplies.battery_share,
            draw_w=draw_w,
            work_w=self._work_w(),
            metered=self._options.metered,
        )

    def _work_w(self) -> float | None:
        if self._options.work_w is not None:
            return self._options.work_w
        if min(self._busy.count, self._idle.count) < ENOUGH:
            return None
        return max(0.0, self._busy.watts - self._idle.watts)
