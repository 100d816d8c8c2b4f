"""One speed curve, and what follows from several. Light: the engine's process carries it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_CLOSE = 0.95


@dataclass(frozen=True, slots=True)
class Curve:
    """With `threads`: ((tokens of a step, prompt tokens/s), ...) and ((sequences, tokens/s of each), ...)."""

    threads: int
    prefill: tuple[tuple[int, float], ...]
    decode: tuple[tuple[int, float], ...]

    @classmethod
    def parse(cls, data: Any) -> Curve:
        """From JSON. Raises KeyError, TypeError or ValueError."""
        prefill, decode = (tuple((int(n), float(r)) for n, r in data[side]) for side in ("prefill", "decode"))
        return cls(int(data["threads"]), prefill, decode)


def best_threads(curves: Sequence[Curve]) -> int:
    """The fewest that come close to the best over all sizes and prompts: others need the cores, too."""

    def score(curve: Curve) -> float:
        rates = [rate for _, rate in (*curve.decode, *curve.prefill[-1:])]
        return sum(map(math.log, rates)) / len(rates)

    best = max(map(score, curves))
    return min(curve.threads for curve in curves if score(curve) >= best + math.log(_CLOSE))


def cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_to_try(count: int) -> list[int]:
    """Powers of two below the number of cores, and that number."""
    return sorted({*(1 << bits for bits in range(count.bit_length()) if 1 << bits < count), count})
