"""Prefill and decode rates at several numbers of threads, measured in small steps.

A generator: whoever drives it can stop between any two steps, so that work which arrives is not held up.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence

import numpy as np

from serving.engines.llama_cpp.native import Context, Tokens
from serving.engines.llama_cpp.variants.curve import Curve
from serving.engines.llama_cpp.variants.rates import Clock, compute, random_prompt

CHUNKS = (16, 64, 256)
PROMPT_TOKENS = 256
DECODE_STEPS = 32
_LEAST_STEPS = 3


class Sweep:
    """Every chunk and every size at every number of threads; `curves` grows with each of these.

    `point_s` is about the time for one figure, and at least three steps. What the context held is lost, and
    it is left with the last number of threads. Contexts of fewer than PROMPT_TOKENS + DECODE_STEPS tokens a
    sequence measure shorter prompts.
    """

    def __init__(
        self,
        context: Context,
        prompt: Tokens,
        *,
        threads: Sequence[int],
        sizes: Sequence[int],
        point_s: float,
        clock: Clock = time.perf_counter,
    ) -> None:
        self._context, self._prompt, self._clock = context, prompt, clock
        self._threads, self._sizes, self._point_s = threads, sorted(sizes), point_s
        self._step_tokens = len(context.tokens)
        self.curves: list[Curve] = []

    def steps(self) -> Iterator[None]:
        """Computes one step each time."""
        for count in self._threads:
            self._context.set_threads(count)
            # The first step with new threads starts them.
            yield from self._prefill(CHUNKS[0], CHUNKS[0])
            rate = yield from self._prefill(CHUNKS[0], CHUNKS[0])
            # Slow devices take a shorter prompt: a second is enough to tell a rate.
            length = min(len(self._prompt), max(CHUNKS[0], int(rate)))
            prefill, decode = [], []
            for chunk in (chunk for chunk in CHUNKS if chunk <= min(length, self._step_tokens)):
                prefill.append((chunk, (yield from self._prefill(length, chunk))))
            for size in self._sizes:
                decode.append((size, 1.0 / (yield from self._decode(size, length))))
            self.curves.append(Curve(count, tuple(prefill), tuple(decode)))
        self._context.clear()

    def _prefill(self, length: int, chunk: int) -> Generator[None, None, float]:
        """Tokens/s, the median; leaves sequence 0 filled."""
        rates: list[float] = []
        end_s = self._clock() + self._point_s
        while not rates or (self._clock() < end_s and len(rates) < DECODE_STEPS):
            self._context.clear()
            spent_s = 0.0
            for start in range(0, length, chunk):
                part = self._prompt[start : start + chunk][: length - start]
                spent_s += self._timed([(0, part, start)])
                yield
            rates.append(length / spent_s)
        return float(np.median(rates))

    def _decode(self, size: int, depth: int) -> Generator[None, None, float]:
        """Seconds of a step that adds one token to each of `size` sequences, sequence 0 `depth` deep."""
        self._context.truncate(0, depth)
        for sequence in range(1, size):
            self._context.truncate(sequence, 0)
        times: list[float] = []
        end_s = self._clock() + self._point_s
        while len(times) < _LEAST_STEPS or (self._clock() < end_s and len(times) < DECODE_STEPS):
            token, step = self._prompt[:1], len(times)
            times.append(self._timed([(s, token, (depth if s == 0 else 0) + step) for s in range(size)]))
            yield
        return float(np.median(times))

    def _timed(self, parts: Sequence[tuple[int, Tokens, int]]) -> float:
        began = self._clock()
        compute(self._context, parts)
        return max(self._clock() - began, 1e-9)


def sweep_prompt(n_vocab: int, context_tokens: int) -> Tokens:
    return random_prompt(n_vocab, max(CHUNKS[0], min(PROMPT_TOKENS, context_tokens - DECODE_STEPS - 1)))
