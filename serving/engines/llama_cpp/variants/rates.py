"""How fast a loaded model computes: prompts, and answers at a batch size."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from serving.engines.llama_cpp.native import Context, Tokens

Clock = Callable[[], float]


def random_prompt(n_vocab: int, length: int) -> Tokens:
    """The same tokens each time; what they are does not change how long they take."""
    return np.random.default_rng(1).integers(0, n_vocab, length).astype(np.int32)


def prefill_rate(
    context: Context, prompt: Tokens, *, chunk: int, repeats: int = 3, clock: Clock = time.perf_counter
) -> float:
    """Prompt tokens/s in steps of `chunk` tokens, the median of `repeats`; leaves sequence 0 filled."""
    rates = []
    for _ in range(repeats):
        context.clear()
        began = clock()
        for start in range(0, len(prompt), chunk):
            compute(context, [(0, prompt[start : start + chunk], start)])
        rates.append(len(prompt) / max(clock() - began, 1e-9))
    return float(np.median(rates))


def decode_step_ms(
    context: Context, size: int, *, depth: int, steps: int, token: int = 1, clock: Clock = time.perf_counter
) -> float:
    """Median time of a step that adds one token to each of `size` sequences, sequence 0 `depth` deep."""
    context.truncate(0, depth)
    for sequence in range(1, size):
        context.truncate(sequence, 0)
    tokens = np.array([token], np.int32)
    times = []
    for step in range(steps):
        began = clock()
        compute(context, [(s, tokens, (depth if s == 0 else 0) + step) for s in range(size)])
        times.append((clock() - began) * 1000.0)
    return max(float(np.median(times)), 1e-6)


def compute(context: Context, parts: Sequence[tuple[int, Tokens, int]]) -> None:
    """Computes (sequence, tokens, first position) parts, sequences ascending, in one batch."""
    count = 0
    for sequence, tokens, position in parts:
        end = count + len(tokens)
        context.tokens[count:end] = tokens
        context.positions[count:end] = np.arange(position, position + len(tokens))
        context.sequence_ids[count:end] = sequence
        context.outputs[count:end] = 0
        context.outputs[end - 1] = 1
        count = end
    context.decode(count)
