"""When the tokens of each answer came, and what follows from that. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Timeline:
    """One answer: when it was asked for, and each token's arrival, in seconds of one clock.

    Of its prompt's tokens the `cached` ones were not computed.
    """

    asked_s: float
    tokens_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0

    @property
    def ttft_ms(self) -> float:
        return (self.tokens_s[0] - self.asked_s) * 1000.0

    def gaps_ms(self, start_s: float, end_s: float) -> list[float]:
        """Times between tokens, of those pairs that end inside the window."""
        pairs = zip(self.tokens_s, self.tokens_s[1:], strict=False)
        return [(after - before) * 1000.0 for before, after in pairs if start_s < after <= end_s]


def decode_rate(timelines: Sequence[Timeline]) -> float:
    """Tokens/s of all answers together while all of them were being decoded."""
    start_s = max(one.tokens_s[0] for one in timelines)
    end_s = min(one.tokens_s[-1] for one in timelines)
    inside = sum(start_s < at <= end_s for one in timelines for at in one.tokens_s)
    return inside / (end_s - start_s) if end_s > start_s else 0.0


def whole_rate(timelines: Sequence[Timeline]) -> float:
    """Tokens/s from the first request to the last token, prompts included."""
    start_s = min(one.asked_s for one in timelines)
    end_s = max(one.tokens_s[-1] for one in timelines)
    return sum(len(one.tokens_s) for one in timelines) / (end_s - start_s)


def mean_ttft_ms(timelines: Sequence[Timeline]) -> float:
    return sum(one.ttft_ms for one in timelines) / len(timelines)
