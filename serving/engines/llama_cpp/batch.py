"""Puts one step's tokens into the batch. The hot path: a few slices per sequence, no loop over tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from serving.engines.llama_cpp.native import Context
from serving.engines.llama_cpp.sequence import Running


def fill_answers(context: Context, answering: Sequence[Running]) -> list[tuple[Running, int]]:
    """One token of each; the sequences with the entries of their logits."""
    count = len(answering)
    context.sequence_ids[:count] = [running.slot.index for running in answering]
    context.outputs[:count] = 1
    wanted = list(zip(answering, range(count), strict=True))
    refill(context, wanted)
    return wanted


def fill_prompts(
    context: Context, active: Sequence[Running], allowance: Mapping[int, int]
) -> tuple[int, list[tuple[Running, int]]]:
    """The prompt tokens of `allowance`, in the order of `active`.

    Returns (entries, the sequences whose prompt is complete with the entry of its logits).
    """
    tokens, positions = context.tokens, context.positions
    at = 0
    wanted: list[tuple[Running, int]] = []
    for running in active:
        part = allowance.get(running.sid, 0)
        if not part:
            continue
        slot = running.slot
        filled, end = slot.filled, at + part
        tokens[at:end] = running.prompt[filled : filled + part]
        positions[at:end] = np.arange(filled, filled + part, dtype=np.int32)
        context.sequence_ids[at:end] = slot.index
        context.outputs[at:end] = 0
        slot.filled = filled + part
        at = end
        if running.decoding:
            context.outputs[at - 1] = 1
            wanted.append((running, at - 1))
    return at, wanted


def refill(context: Context, wanted: Sequence[tuple[Running, int]]) -> None:
    """One more token of each, where the last step was the same sequences' answers."""
    tokens, positions = [], []
    for running, _ in wanted:
        slot = running.slot
        tokens.append(running.answer[-1])
        positions.append(slot.filled)
        slot.filled += 1
    if tokens:
        context.put(tokens, positions)
