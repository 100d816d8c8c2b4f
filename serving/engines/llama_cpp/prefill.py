"""How many prompt tokens one step computes, and whose. Pure.

While sequences are answering, prompt tokens may make a step only so much longer that no answer stalls: up to
`_GUARD` times the step without them. When more sequences wait for their first token than are answering, time
is worth more to those who wait, and the guard widens in that proportion; so it does for a first token that
would come too late for its deadline. `guard_ms` bounds it whatever the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serving.engines.llama_cpp.meter import SpeedMeter

_GUARD = 2.1
_MAX_STEP_MS = 500.0
_MIN_UNGUARDED_TOKENS = 64
_LEARN = 0.25
_SMALL_CHUNK = 24


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
        # By power of two of the chunk: measured over expected cost.
        self._cost_ratio: dict[int, float] = {}

    def allowance(self, decoding: int, waiting: Sequence[Pending], now_ms: float) -> dict[int, int]:
        """Prompt tokens for this step by sequence number.

        By priority; then first come first served, but a short prompt passes a long one that has not waited
        for longer than its own computing takes.
        """
        if not waiting:
            return {}
        token_ms = 1000.0 / self._meter.prefill_tokens_per_s
        room = min(self._tokens(decoding, waiting, now_ms), self._batch_tokens - decoding)
        allowance: dict[int, int] = {}
        for one in sorted(waiting, key=lambda p: (-p.priority, p.admitted_ms + p.left * token_ms, p.sid)):
            part = min(room, one.left)
            if part <= 0:
                break
            allowance[one.sid] = part
            room -= part
        return allowance

    def observe(self, *, decoded: int, prefilled: int, step_ms: float) -> None:
        """One real step."""
        self._meter.observe(decoded=decoded, prefilled=prefilled, step_ms=step_ms)
        if decoded == 0 or prefilled == 0:
            return
        extra_ms = max(step_ms - self._meter.expected_step_ms(decoded), 0.01)
        bucket = prefilled.bit_length()
        ratio = min(max(extra_ms / self._expected_ms(prefilled), 0.1), 10.0)
        known = self._cost_ratio.get(bucket)
        self._cost_ratio[bucket] = ratio if known is None else known + _LEARN * (ratio - known)

    def _tokens(self, decoding: int, waiting: Sequence[Pending], now_ms: float) -> int:
        if decoding == 0:
            timely = int(self._meter.prefill_tokens_per_s * _MAX_STEP_MS / 1000.0)
            return min(max(_MIN_UNGUARDED_TOKENS, timely), self._chunk_tokens)
        base_ms = self._meter.expected_step_ms(decoding)
        extra_ms = base_ms * (_GUARD - 1.0) * max(1.0, len(waiting) / decoding)
        extra_ms = max(extra_ms, *(self._needed_ms(one, base_ms, now_ms) for one in waiting))
        return self._fitting(min(extra_ms, max(self._guard_ms - base_ms, 0.0)))

    def _needed_ms(self, one: Pending, base_ms: float, now_ms: float) -> float:
        """The time per step for prompts that lets this one's first token come in time; 0 when none can."""
        if one.first_token_due_ms is None or one.first_token_due_ms <= now_ms:
            return 0.0
        share = one.left / self._meter.prefill_tokens_per_s * 1000.0 / (one.first_token_due_ms - now_ms)
        return base_ms * share / (1.0 - share) if share < 1.0 else 0.0

    def _fitting(self, extra_ms: float) -> int:
        """The most tokens that are expected to take `extra_ms`; at least one, so that all get on."""
        tokens = 1
        while tokens < self._chunk_tokens:
            step = max(1, tokens // 8)
            if self._cost_ms(tokens + step) > extra_ms:
                break
            tokens += step
        return min(tokens, self._chunk_tokens)

    def _cost_ms(self, tokens: int) -> float:
        return self._expected_ms(tokens) * self._ratio(tokens.bit_length())

    def _ratio(self, bucket: int) -> float:
        """As measured for the nearest size: one never tried must not look dearer than its like."""
        if not self._cost_ratio:
            return 1.0
        known = self._cost_ratio.get(bucket)
        if known is None:
            known = self._cost_ratio[min(self._cost_ratio, key=lambda other: (abs(other - bucket), other))]
        return known

    def _expected_ms(self, tokens: int) -> float:
        """A chunk reads all weights once more and runs, as long as it is small, at half the speed."""
        token_ms = 1000.0 / self._meter.prefill_tokens_per_s
        slow = min(tokens, _SMALL_CHUNK)
        return 0.5 * self._meter.expected_step_ms(1) + token_ms * (slow + tokens)
