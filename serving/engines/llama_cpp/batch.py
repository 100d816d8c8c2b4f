"""Puts one step's tokens into the batch. The hot path: a few slices per sequence, no loop over tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from serving.engines.llama_cpp.native import Context
from serving.engines.llama_cpp.sequence import Running


def fill_batch(
    context: Context, active: Sequence[Running], allowance: Mapping[int, int]
) -> tuple[int, list[tuple[Running, int]], int]:
    """One token of every answering sequence and the prompt tokens of `allowance`, in the order of `active`.

    Returns (entries, sequences that get a token with the entry of its logits, prompt tokens).
    """
    if not allowance:
        return _fill_answering(context, active)
    tokens, positions = context.tokens, context.positions
    sequence_ids, outputs = context.sequence_ids, context.outputs
    at = prefilled = 0
    wanted: list[tuple[Running, int]] = []
    for running in active:
        slot = running.slot
        filled = slot.filled
        if running.decoding:
            tokens[at] = running.answer[-1]
            positions[at] = filled
            sequence_ids[at] = slot.index
            part = 1
        elif part := allowance.get(running.sid, 0):
            end = at + part
            tokens[at:end] = running.prompt[filled : filled + part]
            positions[at:end] = np.arange(filled, filled + part, dtype=np.int32)
            sequence_ids[at:end] = slot.index
            outputs[at:end] = 0
            prefilled += part
        else:
            continue
        slot.filled = filled + part
        at += part
        if running.decoding:
            outputs[at - 1] = 1
            wanted.append((running, at - 1))
    return at, wanted, prefilled


def _fill_answering(
    context: Context, active: Sequence[Running]
) -> tuple[int, list[tuple[Running, int]], int]:
    """The common step: one token each."""
    answering = [running for running in active if running.decoding]
    count = len(answering)
    context.sequence_ids[:count] = [running.slot.index for running in answering]
    context.outputs[:count] = 1
    wanted = list(zip(answering, range(count), strict=True))
    refill(context, wanted)
    return count, wanted, 0


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
