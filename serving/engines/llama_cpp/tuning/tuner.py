"""Measures the device when it is idle, once per model and device, in the engine's own process.

Not while the model loads: readiness would wait for it, and a device that has just started is busy. Not after
the first request: what is measured overwrites the cache, and computed prefixes are worth more. A request that
arrives meanwhile ends it after at most one step; the next start tries again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serving.engines.llama_cpp.native import Context
from serving.engines.llama_cpp.tuning.cpu import CpuWatch
from serving.engines.llama_cpp.variants.curve import Curve
from serving.engines.llama_cpp.variants.sweep import Sweep, sweep_prompt

POINT_S = 0.15
# With this much of the processor in use by others, what is measured is not the device.
_DISTURBED_CORES = 0.3
_TRIES = 5

Done = Callable[[list[Curve]], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """`threads` is what the context computes with before and, unless `done` changes it, afterwards."""

    n_vocab: int
    context_tokens: int
    threads: int
    threads_to_try: Sequence[int]
    sizes: Sequence[int]
    after_s: float


class SelfTuner:
    """Takes the loop's place while there is nothing to do. `done` is called on the loop's thread, and so is
    `cleared` when what lay in the context is lost."""

    def __init__(
        self,
        context: Context,
        wanted: Wanted,
        done: Done,
        cleared: Callable[[], None],
        watch: CpuWatch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._context, self._wanted, self._done = context, wanted, done
        self._cleared = cleared
        self._watch = watch or CpuWatch(clock=clock)
        self._clock = clock
        self._tries_left = _TRIES
        self._after_s = wanted.after_s

    def worked(self) -> None:
        """A request was computed: the cache is no longer free to be overwritten."""
        self._tries_left = 0

    def rest(self, wake: threading.Event) -> None:
        """Until `wake` is set, or nothing is left to measure."""
        while self._tries_left > 0 and not wake.wait(self._after_s):
            self._tries_left -= 1
            # Whoever is busy now may be so for long.
            self._after_s *= 2.0
            curves = self._measure(wake)
            if curves:
                self._tries_left = 0
                self._done(curves)

    def _measure(self, wake: threading.Event) -> list[Curve]:
        """Empty when it was interrupted or disturbed."""
        wanted = self._wanted
        measuring = Sweep(
            self._context,
            sweep_prompt(wanted.n_vocab, wanted.context_tokens),
            threads=wanted.threads_to_try,
            sizes=wanted.sizes,
            point_s=POINT_S,
            clock=self._clock,
        )
        disturbed_s, last_s = 0.0, self._clock()
        began_s = last_s
        try:
            for _ in measuring.steps():
                now_s = self._clock()
                view = self._watch.after_step(1, now_s - last_s)
                disturbed_s += (view.foreign_cores or 0.0) * (now_s - last_s)
                last_s = now_s
                if wake.is_set():
                    return []
        finally:
            self._context.set_threads(wanted.threads)
            self._context.clear()
            self._cleared()
        return measuring.curves if disturbed_s < _DISTURBED_CORES * (last_s - began_s) else []
