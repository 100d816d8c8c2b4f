"""What is predicted of an attempt, what the prediction was made of, and how likely it keeps to a budget."""

from __future__ import annotations

from typing import NamedTuple

from tidegate.routing.domain import Budget
from tidegate.routing.odds import PRIOR, Odds


class Prediction(NamedTuple):
    """Milliseconds. The times are medians: ttft = wake + network + queue + prefill; total = ttft + the rest.

    `output_tokens` is how long the answer is expected to become. `odds` knows how far such predictions miss.
    `wake_ms` is the node's word on how long its model takes to be loaded.
    The rest is for learning: raw times are means before the medians of the misses were applied, and `parts`
    (of queue, prefill and step) are milliseconds as the node's own report has them.
    """

    ttft_ms: float
    tpot_ms: float
    total_ms: float
    queue_ms: float
    prefill_ms: float
    network_ms: float
    cached_tokens: int
    batch_size: int
    output_tokens: float = 1.0
    odds: Odds = PRIOR
    raw_ttft_ms: float = 0.0
    raw_tpot_ms: float = 0.0
    raw_total_ms: float = 0.0
    regime: int = 0
    fresh_tokens: float = 1.0
    asked_tokens: int = 1
    queue_parts: tuple[float, float] = (0.0, 0.0)
    prefill_parts: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    step_parts: tuple[float, float] = (0.0, 0.0)
    rtt_ms: float = 0.0
    wake_ms: float = 0.0

    @property
    def own_prefill_ms(self) -> float:
        """What this prompt alone computes, without those before and beside it, at the speed reported."""
        return self.prefill_parts[1]

    @property
    def ttft_p95_ms(self) -> float:
        """What 95 of 100 such attempts keep to."""
        return self.wake_ms + (self.ttft_ms - self.wake_ms) * self.odds.ttft_p95

    @property
    def tpot_p95_ms(self) -> float:
        return self.tpot_ms * self.odds.tpot_p95

    @property
    def total_p95_ms(self) -> float:
        return self.wake_ms + (self.total_ms - self.wake_ms) * self.odds.total_p95

    def awake(self) -> Prediction:
        """As if the model had been loaded: what is learned of a node is its speed, not its sleep."""
        if not self.wake_ms:
            return self
        ttft_ms, total_ms = self.ttft_ms - self.wake_ms, self.total_ms - self.wake_ms
        return self._replace(ttft_ms=ttft_ms, total_ms=total_ms, wake_ms=0.0)


def p_meet(prediction: Prediction, budget: Budget, elapsed_ms: float) -> float:
    """P(all limited parts are met), from how far such predictions missed together. Rises with every limit."""
    if prediction.wake_ms:
        elapsed_ms += prediction.wake_ms
        prediction = prediction.awake()
    ttft_ms, tpot_ms, total_ms = budget.ttft_ms, budget.tpot_ms, budget.total_ms
    ttft = tpot = total = None
    if ttft_ms is not None:
        if ttft_ms <= elapsed_ms:
            return 0.0
        ttft = (ttft_ms - elapsed_ms) / prediction.ttft_ms
        if tpot_ms is None and total_ms is None:
            return prediction.odds.ttft.within(ttft)
    if tpot_ms is not None:
        tpot = tpot_ms / prediction.tpot_ms
    if total_ms is not None:
        if total_ms <= elapsed_ms:
            return 0.0
        total = (total_ms - elapsed_ms) / prediction.total_ms
    of_ttft, of_all = prediction.odds
    together = of_all.within(ttft, tpot, total)
    if ttft is None:
        return together
    # Of the first token alone more is known, and of this node's load.
    alone = of_ttft.within(ttft)
    return alone if alone < together else together
