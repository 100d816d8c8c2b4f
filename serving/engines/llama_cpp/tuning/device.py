"""Threads, slots and speeds of one engine: what is known when it starts, and what changes while it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

from serving.engines.llama_cpp.loop import DecodeLoop
from serving.engines.llama_cpp.meter import SpeedMeter
from serving.engines.llama_cpp.native import Context, Model
from serving.engines.llama_cpp.protocol import ChildConfig, Frame
from serving.engines.llama_cpp.selftest import measure
from serving.engines.llama_cpp.tuning.keeper import ThreadKeeper
from serving.engines.llama_cpp.tuning.slots import SlotPolicy, StepShape
from serving.engines.llama_cpp.tuning.tuner import SelfTuner, Wanted
from serving.engines.llama_cpp.variants.curve import Curve, best_threads, cores, threads_to_try

Send = Callable[[Frame], None]
# By a step of one answer, where nothing was measured.
_MORE_PER_ANSWER = 0.3


class DeviceTuning:
    """In the engine's process. Make it before the context, which needs `threads`."""

    def __init__(self, config: ChildConfig, build: str) -> None:
        self._config, self._build = config, build
        # What another build computes in another way is no measure for this one.
        kept = config.kept if config.kept is not None and config.kept["build"] == build else None
        self._curves = [Curve.parse(each) for each in kept["curves"]] if kept else []
        self._measured_s = float(kept["measured_s"]) if kept else 0.0
        self._known = {c.threads for c in self._curves} >= set(self._to_try())
        if not self._known:
            self._curves = []
        # One is never far wrong; more are measured first.
        self.threads = config.threads or (best_threads(self._curves) if self._curves else 1)
        self.speeds_age_s = 0.0
        self._keeper: ThreadKeeper | None = None
        self._slots: SlotPolicy | None = None
        self._told_slots = config.slots

    def _to_try(self) -> Sequence[int]:
        return [self._config.threads] if self._config.threads else threads_to_try(cores())

    def meter(self, context: Context, model: Model) -> SpeedMeter:
        """From an earlier child, from what was kept, or measured now."""
        if self._config.known_speeds:
            return SpeedMeter.of_curve(*self._config.known_speeds)
        curve = self._curve()
        if curve is None:
            return measure(context, self._config.slots, model.n_vocab)
        self.speeds_age_s = max(0.0, time.time() - self._measured_s)
        return SpeedMeter.of_curve(curve.prefill[-1][1], curve.decode)

    def _curve(self) -> Curve | None:
        """What was measured of this device when it was idle."""
        return next((c for c in self._curves if c.threads == self.threads), None)

    def attach(
        self,
        loop: DecodeLoop,
        context: Context,
        model: Model,
        meter: SpeedMeter,
        send: Send,
    ) -> None:
        """Watches the loop from now on; what it measures when idle is sent as a frame `tuned`."""
        self._keep(context, meter)
        if self._config.max_tpot_ms > 0.0 and self._config.slots > 1:
            shape = _shape(self._curve(), self._config.slots)
            self._slots = SlotPolicy(self._config.slots, self._config.max_tpot_ms, shape)
        tuner: SelfTuner | None = None
        if self._config.tune_after_s > 0 and not self._known:

            def done(curves: list[Curve]) -> None:
                self._take(curves, context, meter)
                found = [asdict(curve) for curve in curves]
                told: Frame = {"t": "tuned", "build": self._build, "curves": found, "threads": self.threads}
                send(told | {"speeds": [meter.prefill_tokens_per_s, meter.decode_curve()]})

            tuner = SelfTuner(context, self._wanted(model), done, loop.cache.forget_slots)

        def rest(wake: threading.Event) -> None:
            if tuner is not None:
                tuner.rest(wake)
            if self._keeper is not None:
                self._keeper.rest(wake)
            wake.wait()

        def after_step(decoded: int, prefilled: int, step_ms: float) -> None:
            if tuner is not None:
                tuner.worked()
            if self._keeper is not None:
                self._keeper.after_step(decoded, prefilled, step_ms)
            if self._slots is not None and decoded:
                loop.usable_slots = self._slots.step(decoded, step_ms, time.monotonic())

        if tuner is not None or self._slots is not None or self._adapts:
            loop.after_step, loop.rest = after_step, rest

    @property
    def _adapts(self) -> bool:
        return self._config.adapt_threads and self._config.threads != 1

    def _keep(self, context: Context, meter: SpeedMeter) -> None:
        if self._adapts and self.threads > 1:
            self._keeper = ThreadKeeper(self.threads, meter, context.set_threads)

    def _wanted(self, model: Model) -> Wanted:
        config = self._config
        sizes = sorted({size for size in (1, 2, 4, 8, 16) if size < config.slots} | {config.slots})
        tokens = min(config.context_tokens, model.context_train)
        return Wanted(model.n_vocab, tokens, self.threads, self._to_try(), sizes, config.tune_after_s)

    def _take(self, curves: list[Curve], context: Context, meter: SpeedMeter) -> None:
        self.threads = self._config.threads or best_threads(curves)
        context.set_threads(self.threads)
        curve = next(c for c in curves if c.threads == self.threads)
        meter.renew(curve.prefill[-1][1], curve.decode)
        if self._slots is not None:
            self._slots.shape = _shape(curve, self._config.slots)
        self._keep(context, meter)

    def take_change(self) -> tuple[int, str] | None:
        """(threads, why) once after they were changed for good."""
        return None if self._keeper is None else self._keeper.take_change()

    def take_slots(self) -> tuple[int, str] | None:
        """(sequences that run at once, why) once after that was changed."""
        if self._slots is None or self._slots.slots == self._told_slots:
            return None
        self._told_slots = self._slots.slots
        return self._told_slots, self._slots.reason


def _shape(curve: Curve | None, slots: int) -> StepShape:
    """What is measured as a model loads is no shape: a busy device makes any step of it the longest."""
    if curve is None or len(curve.decode) < 2:
        return StepShape(_MORE_PER_ANSWER)
    return StepShape.of_curve(SpeedMeter.of_curve(curve.prefill[-1][1], curve.decode).expected_step_ms, slots)
