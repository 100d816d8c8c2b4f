"""How many prompt tokens one step computes, and whose. Pure.

While sequences are answering, steps of prompt tokens come between theirs, and may take only so long that no
answer stalls: two tokens of it are up to `_GUARD` times as far apart as without. Those who came together with
the ones that wait are no reason to hold back: nobody's answer was running yet. When more sequences wait for
their first token than were answering before, time is worth more to those who wait, and the guard widens in
that proportion; so it does for a first token that would come too late for its deadline. `guard_ms` bounds it
for the sake of running answers, but a step may always take two passes over the weights, or as long as nobody
notices, and prompts that came together are computed 64 tokens at a time at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serving.engines.llama_cpp.meter import SpeedMeter

_GUARD = 2.4
# A step of prompts may take so many passes over the weights: beside one answer, and with a model that is
# large for its device, a pass takes as long as a step of answers; hardly more would compute a token or two.
_PASSES = 2.0
# Tokens that come no further apart than this come faster than anyone reads. Where a step of answers takes a
# few milliseconds, as on a GPU, the guard would leave no time for a pass: prompts got on a token a step.
_UNNOTICED_MS = 25.0
_MAX_STEP_MS = 500.0
_MIN_UNGUARDED_TOKENS = 64
_LEARN = 0.25
# Few tokens at a time run at half the speed of whole chunks.
_SLOW_TOKENS = 32
_TOGETHER_MS = 250.0


@dataclass(frozen=True, slots=True)
class Pending:
    """A sequence in a slot whose prompt has `left` tokens to compute."""

    sid: int
    slot: int
    left: int
    priority: int
    admitted_ms: float
    first_token_due_ms: float | None = None


class PrefillPlanner:
    """Gives out each step's prompt tokens and learns what they cost beside answering sequences."""

    def __init__(self, meter: SpeedMeter, *, chunk_tokens: int, batch_tokens: int, guard_ms: float) -> None:
        self._meter = meter
        self._chunk_tokens = chunk_tokens
        self._batch_tokens = batch_tokens
        self._guard_ms = guard_ms
        # A pass over all weights, however few the tokens are, and what more these cost at the end of a long
        # prompt. Below zero where they are cheaper than expected.
        self._pass_ms = meter.expected_step_ms(1)

    def allowance(
        self, answering_ms: Sequence[float], waiting: Sequence[Pending], now_ms: float
    ) -> dict[int, int]:
        """Prompt tokens for this step by sequence number. `answering_ms`: when the answering were admitted.

        By priority; then first come first served, but a short prompt passes a long one that has not waited
        for longer than its own computing takes.
        """
        if not waiting:
            return {}
        token_ms = 1000.0 / self._meter.prefill_tokens_per_s
        room = min(self._tokens(answering_ms, waiting, now_ms), self._batch_tokens)
        allowance: dict[int, int] = {}
        for one in sorted(waiting, key=lambda p: (-p.priority, p.admitted_ms + p.left * token_ms, p.sid)):
            part = min(room, one.left)
            if part <= 0:
                break
            allowance[one.sid] = part
            room -= part
        return allowance

    def observe(self, *, decoded: int, prefilled: int, step_ms: float, beside: bool = False) -> None:
        """One real step; `beside` answers that it held up."""
        self._meter.observe(decoded=decoded, prefilled=prefilled, step_ms=step_ms)
        if beside and prefilled > 0:
            token_ms = 1000.0 / self._meter.prefill_tokens_per_s
            pass_ms = step_ms - token_ms * (prefilled + min(prefilled, _SLOW_TOKENS))
            self._pass_ms += _LEARN * (pass_ms - self._pass_ms)

    def _tokens(self, answering_ms: Sequence[float], waiting: Sequence[Pending], now_ms: float) -> int:
        if not answering_ms:
            timely = int(self._meter.prefill_tokens_per_s * _MAX_STEP_MS / 1000.0)
            return min(max(_MIN_UNGUARDED_TOKENS, timely), self._chunk_tokens)
        base_ms, pass_ms = (self._meter.expected_step_ms(n) for n in (len(answering_ms), 1))
        room_ms = max(self._guard_ms - base_ms, 0.0)
        first_ms = min(one.admitted_ms for one in waiting)
        # Who comes during a step is admitted after it.
        together_ms = max(_TOGETHER_MS, 2000.0 * _MIN_UNGUARDED_TOKENS / self._meter.prefill_tokens_per_s)
        elders = sum(at + together_ms < first_ms for at in answering_ms)
        if not elders:
            return max(self._fitting(room_ms), min(_MIN_UNGUARDED_TOKENS, self._chunk_tokens))
        extra_ms = base_ms * (_GUARD - 1.0) * max(1.0, len(waiting) / elders)
        extra_ms = max(extra_ms, *(self._needed_ms(one, base_ms, now_ms) for one in waiting))
        extra_ms = max(extra_ms, _UNNOTICED_MS - base_ms)
        return self._fitting(max(min(extra_ms, room_ms), _PASSES * pass_ms))

    def _needed_ms(self, one: Pending, base_ms: float, now_ms: float) -> float:
        """The time per step for prompts that lets this one's first token come in time; 0 when none can."""
        if one.first_token_due_ms is None or one.first_token_due_ms <= now_ms:
            return 0.0
        share = one.left / self._meter.prefill_tokens_per_s * 1000.0 / (one.first_token_due_ms - now_ms)
        return base_ms * share / (1.0 - share) if share < 1.0 else 0.0

    def _fitting(self, extra_ms: float) -> int:
        """The most tokens that are expected to take `extra_ms`; at least one, so that all get on."""
        at_full_speed = (extra_ms - self._pass_ms) / 1000.0 * self._meter.prefill_tokens_per_s
        tokens = max(at_full_speed / 2.0, at_full_speed - _SLOW_TOKENS)
        return min(max(int(tokens), 1), self._chunk_tokens)
