"""What a node reports of its own speed, as times."""

from __future__ import annotations

from tidegate.routing.domain import Speeds

# For nodes that announce no speed, or nonsense: slow enough to lose against anything measured.
_MIN_TPS = 1e-3
_UNKNOWN_PREFILL_TPS = 50.0
_UNKNOWN_DECODE_TPS = 5.0
# Cost of each further sequence in a batch, as a share of the step at batch 1, where only one batch size was
# measured. A small CPU box measures 0.4 at four sequences, a GPU far less.
_UNKNOWN_BATCH_SLOPE = 0.35


def step_ms(decode: tuple[tuple[int, float], ...], batch: int) -> float:
    """Milliseconds of one decode step with `batch` sequences, from a measured curve.

    Step time is close to affine in the batch size, so it is interpolated and extrapolated as a time, not as
    a speed, and never falls with the batch even where the measurements do.
    """
    low_batch, low_ms, slope = 0, 0.0, 0.0
    for size, per_sequence_tps in decode:
        if size <= low_batch or not per_sequence_tps > _MIN_TPS:
            continue
        here_ms = 1000.0 / per_sequence_tps
        if here_ms < low_ms:
            here_ms = low_ms
        if low_batch:
            slope = (here_ms - low_ms) / (size - low_batch)
        if size >= batch:
            return here_ms if not low_batch else low_ms + slope * (batch - low_batch)
        low_batch, low_ms = size, here_ms
    if not low_batch:
        low_batch, low_ms = 1, 1000.0 / _UNKNOWN_DECODE_TPS
    if slope == 0.0:
        slope = low_ms * _UNKNOWN_BATCH_SLOPE / low_batch
    return low_ms + slope * max(batch - low_batch, 0)


class _Steps(dict[int, float]):
    """Milliseconds of a step by the number of sequences; looked up many times and computed once each."""

    def __init__(self, decode: tuple[tuple[int, float], ...]) -> None:
        super().__init__({0: 0.0, 1: step_ms(decode, 1)})
        self._decode = decode

    def __missing__(self, batch: int) -> float:
        found = self[batch] = step_ms(self._decode, batch)
        return found


class Curves:
    """The times of one report."""

    __slots__ = ("alone_ms", "ms_per_token", "speeds", "steps_ms")

    def __init__(self, speeds: Speeds) -> None:
        tps = speeds.prefill_tokens_per_s
        self.speeds = speeds
        self.ms_per_token = 1000.0 / (tps if tps > _MIN_TPS else _UNKNOWN_PREFILL_TPS)
        self.steps_ms = _Steps(speeds.decode)
        self.alone_ms = self.steps_ms[1]
