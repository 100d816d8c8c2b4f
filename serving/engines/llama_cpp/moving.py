"""What moving a sequence's keys and values costs here, and whether it is worth it. Pure.

On a processor a state is copied within the same memory, which takes a hundredth of the time of computing it.
From a GPU it goes to the processor and back, and a fast GPU computes it again in less.
"""

from __future__ import annotations

_LEARN = 0.5
# What is never tried is never measured again: each refusal takes so much off what a move is believed to cost.
_FORGET = 0.995


class MoveCost:
    """Learned time per token of one kind of move, saving or restoring."""

    def __init__(self) -> None:
        self._ms_per_token: float | None = None

    def expected_ms(self, tokens: int) -> float:
        """0 before the first move: it is tried."""
        return tokens * (self._ms_per_token or 0.0)

    def pays(self, tokens: int, gain_ms: float) -> bool:
        """Whether moving so many tokens is expected to cost less than it gains."""
        return self.expected_ms(tokens) <= gain_ms

    def refused(self) -> None:
        """It was not done for its cost: once in a while it is tried again."""
        if self._ms_per_token is not None:
            self._ms_per_token *= _FORGET

    def observe(self, tokens: int, seconds: float) -> None:
        """So many tokens were moved in this time."""
        if tokens > 0:
            took = seconds * 1000.0 / tokens
            known = self._ms_per_token
            self._ms_per_token = took if known is None else known + _LEARN * (took - known)
