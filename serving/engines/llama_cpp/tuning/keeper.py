"""Sets the number of threads of a running engine: the policy's hands and eyes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from serving.engines.llama_cpp.meter import SpeedMeter
from serving.engines.llama_cpp.tuning.cpu import CpuWatch
from serving.engines.llama_cpp.tuning.policy import Step, ThreadPolicy

# What was seen must not be old when work arrives; once a second costs nothing.
_LOOK_EVERY_S = 1.0
# After so short a rest what was learned from steps still holds.
_SHORT_S = 0.25


class ThreadKeeper:
    """Asked by the loop after every step. `apply` changes the threads of the next one."""

    def __init__(
        self,
        most: int,
        meter: SpeedMeter,
        apply: Callable[[int], None],
        watch: CpuWatch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._apply = apply
        self._watch = watch or CpuWatch(clock=clock)
        self._clock = clock

        def expected_ms(decoded: int, prefilled: int) -> float:
            return meter.expected_step_ms(decoded) + prefilled * 1000.0 / meter.prefill_tokens_per_s

        self._policy = ThreadPolicy(most, expected_ms)
        self._told = most

    def after_step(self, decoded: int, prefilled: int, step_ms: float) -> None:
        policy = self._policy
        former = policy.threads
        view = self._watch.after_step(former, step_ms / 1000.0)
        wanted = policy.step(Step(decoded, prefilled, step_ms, self._clock()), view)
        if wanted != former:
            self._apply(wanted)

    def rest(self, wake: threading.Event) -> None:
        """Until `wake` is set; then the next step begins with the threads that fit what others use now."""
        began_s = self._clock()
        while not wake.wait(_LOOK_EVERY_S):
            self._watch.look()
        if self._clock() - began_s < _SHORT_S:
            return
        former = self._policy.threads
        if self._policy.begin(self._clock(), self._watch.look()) != former:
            self._apply(self._policy.threads)

    def take_change(self) -> tuple[int, str] | None:
        """(threads, why) once after they were changed for good; trials are not told."""
        if self._policy.settled == self._told:
            return None
        self._told = self._policy.settled
        return self._told, self._policy.reason
