"""Online correction of latency predictions by what really happened, per node and variant.

Each factor is a multiplicative moving average: log f <- (1 - a) log f + a log(f_sent * actual / predicted),
where f_sent is the factor the prediction already contained. Learning against the raw prediction keeps many
answers in flight from correcting the same error several times. The queue, the node's own work before the
first token, and per-token time err for different reasons and are never mixed.

How far predictions miss is learned too: the spread is the root of a moving mean of log(actual / predicted)^2
of the corrected predictions as they were sent, so a bias that is not corrected yet widens it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from tidegate.routing.observation import Observation

# A queue predicted shorter than this is compared with nothing: it would be all jitter.
_MIN_QUEUE_MS = 20.0
# Where less of the prompt needed computing than this share of what was expected, the prediction missed a warm
# prefix: that says little about the node's speed.
_MIN_FRESH_OF_EXPECTED = 0.25


DEFAULT_SPREAD = 0.25
MIN_SPREAD, MAX_SPREAD = 0.1, 1.0
# One wild answer must not hide what the others say.
_MAX_MISS = 2.0
_SPREAD_WEIGHT = 0.05


class Factors(NamedTuple):
    """What to multiply a raw prediction with: `ttft` scales prefill, `queue` the wait before it.

    The spreads are sigmas of the lognormal error left after correction, of the whole TTFT and of the
    per-token time.
    """

    ttft: float = 1.0
    tpot: float = 1.0
    queue: float = 1.0
    ttft_spread: float = DEFAULT_SPREAD
    tpot_spread: float = DEFAULT_SPREAD


_NEUTRAL = Factors()


class Corrections:
    """A table of Factors by (node_id, variant_digest). Owned by one caller.

    `weight` is what one observation counts for, `bounds` limits every factor, `half_life_s` is how fast a
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
        self._factors: dict[tuple[str, str], Factors] = {}

    def factors(self, node_id: str, variant_digest: str) -> Factors:
        """All 1 for a node nothing is known about."""
        return self._factors.get((node_id, variant_digest), _NEUTRAL)

    def record(self, observation: Observation) -> None:
        """Learn from one attempt. A censored one only counts where it already took longer than predicted."""
        o = observation
        old = self._factors.get((o.node_id, o.variant_digest), _NEUTRAL)
        tpot, tpot_spread, ttft_spread = old.tpot, old.tpot_spread, old.ttft_spread
        if o.actual_tpot_ms is not None and o.output_tokens >= self._min_output_tokens:
            tpot = self._blend(tpot, o.tpot_factor, o.actual_tpot_ms, o.predicted_tpot_ms, o.censored)
            tpot_spread = _widen(tpot_spread, o.actual_tpot_ms, o.predicted_tpot_ms, o.censored)
        if o.actual_ttft_ms is not None:
            ttft_spread = _widen(ttft_spread, o.actual_ttft_ms, o.predicted_ttft_ms, o.censored)
        self._factors[o.node_id, o.variant_digest] = Factors(
            self._ttft(old.ttft, o), tpot, self._queue(old.queue, o), ttft_spread, tpot_spread
        )

    def _ttft(self, factor: float, o: Observation) -> float:
        """The network's share is measured apart; with the node's stamps, so is the queue's."""
        if o.actual_ttft_ms is None:
            return factor
        actual = max(o.actual_ttft_ms - o.network_ms, 1.0)
        predicted = max(o.predicted_ttft_ms - o.network_ms, 1.0)
        stamped = not o.censored and o.prompt_tokens > 0
        if stamped and o.predicted_prefill_ms > 0.0 and o.predicted_fresh_share > 0.0:
            of_expected = (1.0 - o.cached_tokens / o.prompt_tokens) / o.predicted_fresh_share
            if of_expected < _MIN_FRESH_OF_EXPECTED:
                return factor
            actual = max(actual - o.queue_ms, 1.0)
            predicted = o.predicted_prefill_ms * of_expected
        return self._blend(factor, o.ttft_factor, actual, predicted, o.censored)

    def _queue(self, factor: float, o: Observation) -> float:
        if o.censored or o.prompt_tokens <= 0 or o.predicted_queue_ms < _MIN_QUEUE_MS:
            return factor
        return self._blend(factor, o.queue_factor, max(o.queue_ms, 1.0), o.predicted_queue_ms, False)

    def decay(self, elapsed_s: float) -> None:
        """Let all factors go back towards 1 for `elapsed_s` seconds; the owner calls it now and then."""
        keep = 0.5 ** (max(elapsed_s, 0.0) / self._half_life_s)
        faded = {
            key: Factors(
                f.ttft**keep,
                f.tpot**keep,
                f.queue**keep,
                DEFAULT_SPREAD * (f.ttft_spread / DEFAULT_SPREAD) ** keep,
                DEFAULT_SPREAD * (f.tpot_spread / DEFAULT_SPREAD) ** keep,
            )
            for key, f in self._factors.items()
        }
        # What says nothing any more is dropped, so that nodes that went do not stay in the table.
        self._factors = {key: f for key, f in faded.items() if not _is_neutral(f)}

    def forget(self, node_id: str) -> None:
        """A node left or restarted: what was learned about it no longer holds."""
        for key in [key for key in self._factors if key[0] == node_id]:
            del self._factors[key]

    def _blend(self, factor: float, sent: float, actual: float, predicted: float, censored: bool) -> float:
        if not (actual > 0.0 and predicted > 0.0 and sent > 0.0 and math.isfinite(actual / predicted * sent)):
            return factor
        if censored and actual <= predicted:
            return factor
        target = min(max(sent * actual / predicted, self._low), self._high)
        log_factor = (1.0 - self._weight) * math.log(factor) + self._weight * math.log(target)
        return min(max(math.exp(log_factor), self._low), self._high)


def _widen(spread: float, actual: float, predicted: float, censored: bool) -> float:
    """The moving spread with one more miss. A cut-off attempt counts only as missing at least this much."""
    if not (actual > 0.0 and predicted > 0.0 and math.isfinite(actual / predicted)):
        return spread
    if censored and actual <= predicted:
        return spread
    miss = min(abs(math.log(actual / predicted)), _MAX_MISS)
    mean = (1.0 - _SPREAD_WEIGHT) * spread * spread + _SPREAD_WEIGHT * miss * miss
    return min(max(math.sqrt(mean), MIN_SPREAD), MAX_SPREAD)


def _is_neutral(factors: Factors) -> bool:
    """Within half a percent of knowing nothing."""
    spreads = (factors.ttft_spread / DEFAULT_SPREAD, factors.tpot_spread / DEFAULT_SPREAD)
    return all(abs(math.log(f)) < 0.005 for f in (factors.ttft, factors.tpot, factors.queue, *spreads))
