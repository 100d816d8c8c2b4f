"""What the engine knows of its own speed: measured at start, then kept fresh by real work. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_WEIGHT = 0.1
_PREFILL_WEIGHT = 0.2
# Smaller chunks are computed less efficiently and would make prompts look slower than they are.
MIN_PREFILL_TOKENS = 48


class SpeedMeter:
    """Prefill tokens/s and the time of one decode step by batch size, as moving averages."""

    def __init__(self, prefill_tokens_per_s: float, step_ms: Mapping[int, float]) -> None:
        self.prefill_tokens_per_s = prefill_tokens_per_s
        self._step_ms = dict(step_ms)

    @classmethod
    def of_curve(cls, prefill_tokens_per_s: float, decode: Iterable[tuple[int, float]]) -> SpeedMeter:
        """From what `decode_curve` gave earlier."""
        return cls(prefill_tokens_per_s, {size: 1000.0 / rate for size, rate in decode})

    def renew(self, prefill_tokens_per_s: float, decode: Iterable[tuple[int, float]]) -> None:
        """Everything measured anew."""
        self.prefill_tokens_per_s = prefill_tokens_per_s
        self._step_ms = {size: 1000.0 / rate for size, rate in decode}

    def expected_step_ms(self, batch_size: int) -> float:
        """Time of a step that decodes `batch_size` sequences; linear around the measured sizes."""
        if batch_size <= 0:
            return 0.0
        known = self._step_ms.get(batch_size)
        if known is not None:
            return known
        sizes = sorted(self._step_ms)
        if len(sizes) < 2:
            return self._step_ms[sizes[0]]
        upper = next((i for i, size in enumerate(sizes) if size > batch_size), len(sizes) - 1)
        low, high = sizes[max(upper, 1) - 1], sizes[max(upper, 1)]
        slope = (self._step_ms[high] - self._step_ms[low]) / (high - low)
        return max(0.01, self._step_ms[low] + slope * (batch_size - low))

    def observe(self, *, decoded: int, prefilled: int, step_ms: float) -> None:
        """One real step: `decoded` sequences got a token, `prefilled` prompt tokens were computed."""
        if step_ms <= 0.0:
            return
        if prefilled == 0 and decoded > 0:
            self._observe_decode(decoded, step_ms)
        elif prefilled >= MIN_PREFILL_TOKENS:
            rest_ms = max(step_ms - self.expected_step_ms(decoded), step_ms * 0.1)
            rate = prefilled / rest_ms * 1000.0
            self.prefill_tokens_per_s += _PREFILL_WEIGHT * (rate - self.prefill_tokens_per_s)

    def _observe_decode(self, batch_size: int, step_ms: float) -> None:
        expected_ms = self.expected_step_ms(batch_size)
        change = _WEIGHT * (step_ms / expected_ms - 1.0)
        # What slows one batch size down (heat, a neighbour on the core) mostly slows the others too.
        others = 1.0 + change / 2
        for size in self._step_ms:
            self._step_ms[size] *= others
        self._step_ms[batch_size] = expected_ms * (1.0 + change)

    def decode_curve(self) -> list[tuple[int, float]]:
        """((batch size, tokens/s per sequence), ...) ascending."""
        return [(size, 1000.0 / self._step_ms[size]) for size in sorted(self._step_ms)]
