"""Which attention llama.cpp computes with, and the size of its steps that follows. Pure.

On a processor llama.cpp's flash attention goes row by row below 64 tokens of one sequence, which is every
step of answers and most beside them: without it these are up to seven times faster (docs/decisions/0016).
Then all scores of a step lie in memory at once, so that long contexts need smaller steps.
"""

from __future__ import annotations

from typing import Literal

Attention = Literal["auto", "on", "off"]

MAX_STEP_TOKENS = 512
_MIN_STEP_TOKENS = 64
_SCORES_BYTES = 128 * 2**20


def uses_flash(wanted: Attention, kv_type: str, n_gpu_layers: int) -> bool:
    """Where it is not said: on a GPU, and for a quantized cache, which llama.cpp has no other way for."""
    return kv_type != "f16" or wanted == "on" or (wanted == "auto" and n_gpu_layers != 0)


def step_tokens(n_batch: int, heads: int, context_tokens: int, *, flash: bool) -> int:
    """Most tokens that llama.cpp computes in one go; longer batches are split."""
    most = min(n_batch, MAX_STEP_TOKENS)
    while not flash and most > _MIN_STEP_TOKENS and scores_bytes(most, heads, context_tokens) > _SCORES_BYTES:
        most = max(most // 2, _MIN_STEP_TOKENS)
    return most


def scores_bytes(tokens: int, heads: int, context_tokens: int) -> int:
    """32-bit scores of `tokens` against all of their context."""
    return 4 * tokens * heads * context_tokens
