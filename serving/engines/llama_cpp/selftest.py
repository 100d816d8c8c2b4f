"""The first speed figures, measured when the model is loaded, in well under two seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from serving.engines.llama_cpp.meter import SpeedMeter
from serving.engines.llama_cpp.native import Context

_FIRST_PROMPT, _SECOND_PROMPT = 32, 128
_SECOND_PROMPT_MAX_MS = 400.0
# Where both prompts took no longer, the second is computed again: a GPU loads its programs when it first
# needs them, which takes most of that time.
_AGAIN_MAX_MS = 300.0
_DECODE_STEPS = 6
_DECODE_MAX_MS = 200.0
_TOTAL_MAX_MS = 1_300.0


def measure(
    context: Context, slots: int, n_vocab: int, clock: Callable[[], float] = time.monotonic
) -> SpeedMeter:
    """Prefill rate and step times at batch sizes 1, 2 and `slots`; leaves the context empty.

    On a slow device the later measurements are left out and extrapolated by the meter.
    """
    began = clock()
    rng = np.random.default_rng(1)
    prompt = rng.integers(0, n_vocab, _SECOND_PROMPT).astype(np.int32)
    _run_ms(context, [(0, prompt[:1], 0)], clock)
    context.clear()
    took_ms = _run_ms(context, [(0, prompt[:_FIRST_PROMPT], 0)], clock)
    rate = _FIRST_PROMPT / took_ms * 1000.0
    filled = _FIRST_PROMPT
    if _SECOND_PROMPT / rate * 1000.0 <= _SECOND_PROMPT_MAX_MS:
        context.clear()
        second_ms = _run_ms(context, [(0, prompt, 0)], clock)
        if took_ms + second_ms <= _AGAIN_MAX_MS:
            context.clear()
            second_ms = min(second_ms, _run_ms(context, [(0, prompt, 0)], clock))
        rate = _SECOND_PROMPT / second_ms * 1000.0
        filled = _SECOND_PROMPT
    step_ms: dict[int, float] = {}
    for size in sorted({1, 2, slots} & set(range(1, slots + 1))):
        if step_ms and (clock() - began) * 1000.0 > _TOTAL_MAX_MS:
            break
        step_ms[size] = _decode_ms(context, size, prompt, filled, clock)
    context.clear()
    return SpeedMeter(rate, step_ms)


def _decode_ms(
    context: Context,
    size: int,
    prompt: np.ndarray[tuple[int], np.dtype[np.int32]],
    filled: int,
    clock: Callable[[], float],
) -> float:
    """Median time of one step with `size` sequences, the first of them `filled` tokens deep."""
    times: list[float] = []
    began = clock()
    context.truncate(0, filled)
    for sequence in range(1, size):
        context.truncate(sequence, 0)
    for step in range(_DECODE_STEPS):
        token = prompt[step : step + 1]
        parts = [(s, token, (filled if s == 0 else 0) + step) for s in range(size)]
        times.append(_run_ms(context, parts, clock))
        if (clock() - began) * 1000.0 > _DECODE_MAX_MS:
            break
    return float(np.median(times))


def _run_ms(
    context: Context,
    parts: Sequence[tuple[int, np.ndarray[tuple[int], np.dtype[np.int32]], int]],
    clock: Callable[[], float],
) -> float:
    """Computes (sequence, tokens, first position) parts in one batch; returns milliseconds."""
    count = 0
    for sequence, tokens, position in parts:
        end = count + len(tokens)
        context.tokens[count:end] = tokens
        context.positions[count:end] = np.arange(position, position + len(tokens))
        context.sequence_ids[count:end] = sequence
        context.outputs[count:end] = 0
        context.outputs[end - 1] = 1
        count = end
    began = clock()
    context.decode(count)
    return max((clock() - began) * 1000.0, 0.001)
