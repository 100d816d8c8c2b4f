"""What the answers say about the predictions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from benchmarks.calibration.answers import Answer
from benchmarks.common import percentile

LEVEL = 0.95
WINDOWS = (20, 50, 100, 200, 0)
# A predictor needs some past before it can be asked.
LEAST_PAST = 19
_EDGES = {"length": (5, 10, 20, 40), "open": (0, 2, 5)}


def coverage(answers: Sequence[Answer]) -> float:
    """Share whose first token came within its predicted p95; NaN for none."""
    return sum(a.ttft_ms <= a.p95_ms for a in answers) / len(answers) if answers else math.nan


def pinball(pairs: Iterable[tuple[float, float]]) -> float:
    """Mean loss of (actual, predicted quantile) at LEVEL: what a proper quantile makes smallest."""
    losses = [
        LEVEL * (actual - predicted) if actual > predicted else (1.0 - LEVEL) * (predicted - actual)
        for actual, predicted in pairs
    ]
    return sum(losses) / len(losses)


def best_baseline(answers: Sequence[Answer]) -> tuple[float, str]:
    """The loss of the best window over past TTFTs, over the answers that the model is judged on too.

    A TTFT is past for a request that is sent after its first token came.
    """
    came = sorted((a.sent_s + a.ttft_ms / 1000.0, a.ttft_ms) for a in answers)
    found = []
    for window in WINDOWS:
        pairs = []
        for answer in answers:
            past = [ttft_ms for at_s, ttft_ms in came if at_s <= answer.sent_s]
            if len(past) >= LEAST_PAST:
                pairs.append((answer.ttft_ms, percentile(past[-window:], LEVEL)))
        name = f"the last {window}" if window else "all"
        found.append((pinball(pairs), name))
    return min(found)


def bins(answers: Sequence[Answer], by: Literal["length", "open"]) -> dict[str, list[Answer]]:
    """Answers by prompt tokens or by how many requests were open; empty bins are left out."""
    found: dict[str, list[Answer]] = {}
    low = 0
    for high in (*_EDGES[by], math.inf):
        members = [a for a in answers if low <= (a.prompt_tokens if by == "length" else a.open) <= high]
        if members:
            found[f"{low}-{high}" if high < math.inf else f">={low}"] = members
        low = int(high) + 1 if high < math.inf else low
    return found
