"""How well a model predicts a text: perplexity, for comparing variants of one model with each other."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from serving.engines.llama_cpp.native import Context, Model, NativeError, Tokens

WINDOW_TOKENS = 512
_UNSCORED_TOKENS = 64
_CHUNK_TOKENS = 64


def perplexity(
    model: Model, text: str, *, threads: int = 1, progress: Callable[[float], None] = lambda share: None
) -> float:
    """exp of the mean negative log likelihood per token, natural logarithm.

    The text is cut into windows of 512 tokens; the first 64 of each are context only. Figures compare
    variants on the same text and vocabulary and mean nothing beyond. `progress` gets shares in (0, 1].
    """
    tokens = model.tokenize(text, add_special=False, parse_special=False)
    windows = [tokens[i : i + WINDOW_TOKENS] for i in range(0, len(tokens), WINDOW_TOKENS)]
    windows = [w for w in windows if len(w) > 2 * _UNSCORED_TOKENS]
    if not windows:
        raise NativeError("the text is too short to measure perplexity on")
    context = Context(
        model,
        sequences=1,
        context_tokens=WINDOW_TOKENS,
        n_batch=_CHUNK_TOKENS,
        threads=threads,
        kv_type="f16",
    )
    total, count = 0.0, 0
    try:
        for number, window in enumerate(windows):
            context.clear()
            for start in range(0, len(window), _CHUNK_TOKENS):
                loss, scored = _score(context, window, start)
                total, count = total + loss, count + scored
            progress((number + 1) / len(windows))
    finally:
        context.close()
    return math.exp(total / count)


def _score(context: Context, window: Tokens, start: int) -> tuple[float, int]:
    """Computes one chunk; (sum of -log p, count) of the tokens that its scored positions predict."""
    part = window[start : start + _CHUNK_TOKENS]
    size = len(part)
    context.tokens[:size] = part
    context.positions[:size] = np.arange(start, start + size)
    context.sequence_ids[:size] = 0
    context.outputs[:size] = 1
    context.decode(size)
    loss, scored = 0.0, 0
    for entry in range(size):
        following = start + entry + 1
        if following < _UNSCORED_TOKENS or following >= len(window):
            continue
        logits = context.logits(entry)
        top = float(logits.max())
        total = float(np.exp(logits - top).sum(dtype=np.float64))
        loss += top + math.log(total) - float(logits[window[following]])
        scored += 1
    return loss, scored
