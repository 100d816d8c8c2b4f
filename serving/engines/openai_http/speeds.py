"""Speeds learned from real work, starting from what the operator believes."""

from __future__ import annotations

from dataclasses import dataclass

from serving.engines.openai_http.sequence import Sequence
from tidegate.routing.domain import Speeds

_KEEP = 0.9
_PRIOR_PREFILL_TOKENS = 256.0
_PRIOR_DECODE_TOKENS = 64.0
_MIN_PREFILL_TOKENS = 16  # a shorter prompt measures the way to the server, not its speed
_MIN_DECODE_TOKENS = 4
_MIN_DECODE_S = 1e-3  # shorter: the deltas were buffered on the way


@dataclass(slots=True)
class _Rate:
    """Tokens per second as a ratio of two decaying sums: a long sample weighs more than a short one."""

    tokens: float
    seconds: float

    def add(self, tokens: float, seconds: float) -> None:
        self.tokens = self.tokens * _KEEP + tokens
        self.seconds = self.seconds * _KEEP + seconds

    @property
    def per_s(self) -> float:
        return self.tokens / max(self.seconds, 1e-6)


class SpeedBook:
    """Exponentially weighted speeds: prefill over all prompts, decode per batch size rounded to 2^n."""

    def __init__(self, prior: Speeds, *, now_s: float) -> None:
        if not prior.decode or prior.prefill_tokens_per_s <= 0 or any(rate <= 0 for _, rate in prior.decode):
            raise ValueError("speeds need a positive prefill rate and at least one positive decode rate")
        prefill_s = _PRIOR_PREFILL_TOKENS / prior.prefill_tokens_per_s
        self._prefill = _Rate(_PRIOR_PREFILL_TOKENS, prefill_s)
        self._prior = tuple(sorted(prior.decode))
        self._decode = {batch: self._rate_of(rate) for batch, rate in self._prior}
        self._learned_s = now_s

    def prefilled(self, tokens: int, seconds: float, *, now_s: float) -> None:
        """One prompt of `tokens` uncached tokens took `seconds`, the way to the server included."""
        if tokens > 0 and seconds > 0:
            self._prefill.add(tokens, seconds)
            self._learned_s = now_s

    def decoded(self, tokens: int, seconds: float, batch_size: int, *, now_s: float) -> None:
        """One sequence got `tokens` tokens in `seconds` while about `batch_size` ran at once."""
        if tokens <= 0 or seconds <= 0:
            return
        batch = 1 << (max(batch_size, 1).bit_length() - 1)
        rate = self._decode.get(batch)
        if rate is None:
            rate = self._decode[batch] = self._rate_of(self._prior_for(batch))
        rate.add(tokens, seconds)
        self._learned_s = now_s

    def speeds(self, now_s: float) -> Speeds:
        """`age_ms` counts from the last sample, or from the start when nothing was learned yet."""
        return Speeds(
            prefill_tokens_per_s=self._prefill.per_s,
            decode=tuple((batch, rate.per_s) for batch, rate in sorted(self._decode.items())),
            age_ms=max(0.0, (now_s - self._learned_s) * 1e3),
        )

    def _prior_for(self, batch: int) -> float:
        """The believed rate at the largest batch size not above `batch`, else at the smallest."""
        below = [rate for size, rate in self._prior if size <= batch]
        return below[-1] if below else self._prior[0][1]

    @staticmethod
    def _rate_of(tokens_per_s: float) -> _Rate:
        return _Rate(_PRIOR_DECODE_TOKENS, _PRIOR_DECODE_TOKENS / tokens_per_s)


def learn_from(sequence: Sequence, book: SpeedBook, *, peers_now: int, now_s: float) -> None:
    """What a finished sequence teaches. A prompt that waited inside the server says nothing about prefill."""
    if sequence.started_s is None or sequence.first_s is None or sequence.last_s is None:
        return
    usage = sequence.final_usage()
    uncached = usage.prompt_tokens - usage.cached_tokens
    if uncached >= _MIN_PREFILL_TOKENS and sequence.upstream_waiting == 0:
        book.prefilled(uncached, sequence.first_s - sequence.started_s, now_s=now_s)
    decode_s = sequence.last_s - sequence.first_s
    if usage.completion_tokens > _MIN_DECODE_TOKENS and decode_s >= _MIN_DECODE_S:
        peers = (sequence.peers + peers_now) // 2
        book.decoded(usage.completion_tokens - 1, decode_s, peers, now_s=now_s)
