"""Online correction of latency predictions by what really happened, per node and variant.

Each factor is a multiplicative moving average: log f <- (1 - a) log f + a log(f_sent * actual / predicted),
where f_sent is the factor the prediction already contained. Learning against the raw prediction keeps many
answers in flight from correcting the same error several times. TTFT and per-token time are never mixed.
"""

from __future__ import annotations

import math

from tidegate.routing.observation import Observation

_NEUTRAL = (1.0, 1.0)


class Corrections:
    """A table of (TTFT factor, per-token factor) by (node_id, variant_digest). Owned by one caller.

    `weight` is what one observation counts for, `bounds` limits both factors, `half_life_s` is how fast a
    factor goes back to 1 without news: a node shunned for being slow must get another chance.
    """

    def __init__(
        self,
        *,
        weight: float = 0.2,
        bounds: tuple[float, float] = (0.25, 20.0),
        half_life_s: float = 60.0,
        min_output_tokens: int = 4,
    ) -> None:
        if not 0.0 < weight <= 1.0:
            raise ValueError("weight must be in (0, 1]")
        if not 0.0 < bounds[0] <= 1.0 <= bounds[1]:
            raise ValueError("bounds must enclose 1")
        if half_life_s <= 0.0:
            raise ValueError("half_life_s must be positive")
        self._weight = weight
        self._low, self._high = bounds
        self._half_life_s = half_life_s
        self._min_output_tokens = min_output_tokens
        self._factors: dict[tuple[str, str], tuple[float, float]] = {}

    def factors(self, node_id: str, variant_digest: str) -> tuple[float, float]:
        """(TTFT factor, per-token factor); (1, 1) for a node nothing is known about."""
        return self._factors.get((node_id, variant_digest), _NEUTRAL)

    def record(self, observation: Observation) -> None:
        """Learn from one attempt. A censored one only counts where it already took longer than predicted."""
        key = (observation.node_id, observation.variant_digest)
        ttft, tpot = self._factors.get(key, _NEUTRAL)
        o = observation
        if o.actual_ttft_ms is not None:
            # The factor scales the node's share (queue and prefill); the network's is measured apart.
            actual = max(o.actual_ttft_ms - o.network_ms, 1.0)
            predicted = max(o.predicted_ttft_ms - o.network_ms, 1.0)
            ttft = self._blend(ttft, o.ttft_factor, actual / predicted, o.censored)
        if (
            o.actual_tpot_ms is not None
            and o.output_tokens >= self._min_output_tokens
            and o.actual_tpot_ms > 0.0
            and o.predicted_tpot_ms > 0.0
        ):
            tpot = self._blend(tpot, o.tpot_factor, o.actual_tpot_ms / o.predicted_tpot_ms, o.censored)
        self._factors[key] = (ttft, tpot)

    def decay(self, elapsed_s: float) -> None:
        """Let all factors go back towards 1 for `elapsed_s` seconds; the owner calls it now and then."""
        keep = 0.5 ** (max(elapsed_s, 0.0) / self._half_life_s)
        for key, (ttft, tpot) in self._factors.items():
            self._factors[key] = (ttft**keep, tpot**keep)

    def forget(self, node_id: str) -> None:
        """A node left or restarted: what was learned about it no longer holds."""
        for key in [key for key in self._factors if key[0] == node_id]:
            del self._factors[key]

    def _blend(self, factor: float, sent: float, ratio: float, censored: bool) -> float:
        if not (math.isfinite(ratio) and math.isfinite(sent) and ratio > 0.0 and sent > 0.0):
            return factor
        if censored and ratio <= 1.0:
            return factor
        target = min(max(sent * ratio, self._low), self._high)
        log_factor = (1.0 - self._weight) * math.log(factor) + self._weight * math.log(target)
        return min(max(math.exp(log_factor), self._low), self._high)
