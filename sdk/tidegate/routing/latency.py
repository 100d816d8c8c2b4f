"""How long a request would take on a node: prediction, and the odds of meeting a budget.

`LatencyModel` is the seam; `FirstPrinciples` predicts from what a node measured of itself, its round trip
and its queue, times a learned correction. A model that learns everything from outcomes comes in its place.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

from tidegate.routing.correction import DEFAULT_SPREAD, Corrections
from tidegate.routing.domain import Budget, NodeState, RouteQuery, Variant
from tidegate.routing.prefix import BLOCK_BYTES, matched_blocks

BYTES_PER_TOKEN = 4
BLOCK_TOKENS = BLOCK_BYTES // BYTES_PER_TOKEN
# Engines cut a prefill so that running answers wait no longer than about this for their next token.
PREFILL_CHUNK_MS = 120.0

# For nodes that announce no speed, or nonsense: slow enough to lose against anything measured.
_MIN_TPS = 1e-3
_UNKNOWN_PREFILL_TPS = 50.0
_UNKNOWN_DECODE_TPS = 5.0
# Cost of each further sequence in a batch, as a share of the step at batch 1, where only one batch size was
# measured. A small CPU box measures 0.4 at four sequences, a GPU far less.
_UNKNOWN_BATCH_SLOPE = 0.35
_SQRT2 = math.sqrt(2.0)
_erfc, _log = math.erfc, math.log


class Prediction(NamedTuple):
    """Medians in milliseconds. ttft = network + queue + prefill; total = ttft + (max_tokens - 1) * tpot.

    `fresh_share` is the share of the prompt expected to need computing. The factors are the learned
    corrections already contained: `ttft_factor` in prefill_ms, `queue_factor` in queue_ms, `tpot_factor` in
    tpot_ms.
    """

    ttft_ms: float
    tpot_ms: float
    total_ms: float
    queue_ms: float
    prefill_ms: float
    network_ms: float
    cached_tokens: int
    batch_size: int
    ttft_factor: float = 1.0
    tpot_factor: float = 1.0
    queue_factor: float = 1.0
    ttft_spread: float = DEFAULT_SPREAD
    tpot_spread: float = DEFAULT_SPREAD
    fresh_share: float = 1.0


class LatencyModel(Protocol):
    """What the policy asks of a latency model. Must be pure with respect to one decision."""

    def predict(self, node: NodeState, variant: Variant, query: RouteQuery) -> Prediction: ...

    def p_meet(self, prediction: Prediction, budget: Budget, elapsed_ms: float) -> float:
        """P(all limited parts of the budget are met), with `elapsed_ms` of it already gone."""
        ...


class FirstPrinciples:
    """Prefill of what is ahead, a slot, prefill of the uncached rest, then one step per token.

    Speeds and the size of the error are corrected by what `corrections` has learned.
    """

    def __init__(self, corrections: Corrections | None = None) -> None:
        self._corrections = corrections if corrections is not None else Corrections()

    def predict(self, node: NodeState, variant: Variant, query: RouteQuery) -> Prediction:
        load, sent, announced = node.load, node.in_flight, node.announcement
        speeds = load.speeds or announced.speeds
        slots = announced.slots if announced.slots > 0 else 1
        factors = self._corrections.factors(announced.node_id, variant.digest)
        # What was just sent counts as load until the node acknowledges it.
        active = load.running + load.queued + sent.requests
        prefill_tps = speeds.prefill_tokens_per_s
        if not prefill_tps > _MIN_TPS:
            prefill_tps = _UNKNOWN_PREFILL_TPS
        beside = active if active < slots else slots - 1
        beside_step_ms = step_ms(speeds.decode, beside) if beside else 0.0

        ahead_tokens = load.pending_prefill_tokens + sent.prefill_tokens
        queue_ms = _prefill_ms(ahead_tokens, prefill_tps, beside_step_ms) if ahead_tokens else 0.0
        if active >= slots:
            pending = load.pending_decode_tokens + sent.decode_tokens
            queue_ms += _slot_wait_ms(active, slots, pending, step_ms(speeds.decode, slots))
        queue_ms *= factors.queue

        cached = expected_cached_tokens(node, variant, query)
        fresh = max(query.analysis.prompt_tokens - cached, 1)
        batch = beside + 1
        own_step_ms = step_ms(speeds.decode, batch)
        prefill_ms = _prefill_ms(fresh, prefill_tps, beside_step_ms)
        if prefill_ms < own_step_ms:
            # However few tokens are left, the weights are read once: no pass is shorter than a decode step.
            prefill_ms = max(prefill_ms, step_ms(speeds.decode, 1))
        prefill_ms *= factors.ttft
        tpot_ms = own_step_ms * factors.tpot
        ttft_ms = node.rtt_ms + queue_ms + prefill_ms
        total_ms = ttft_ms + (query.max_tokens - 1 if query.max_tokens > 1 else 0) * tpot_ms
        fresh_share = fresh / max(query.analysis.prompt_tokens, 1)
        timing = (ttft_ms, tpot_ms, total_ms, queue_ms, prefill_ms, node.rtt_ms)
        return Prediction(*timing, cached, batch, *factors, fresh_share)

    def p_meet(self, prediction: Prediction, budget: Budget, elapsed_ms: float) -> float:
        return p_meet(prediction, budget, elapsed_ms)


def p_meet(prediction: Prediction, budget: Budget, elapsed_ms: float) -> float:
    """P(all limited parts are met) when each part errs by a lognormal factor of the prediction's spread.

    TTFT and per-token time are taken to err independently; the total contains both, so it takes the worse of
    its own odds and theirs together. Monotone in every limit.
    """
    ttft_ms, tpot_ms, total_ms = budget.ttft_ms, budget.tpot_ms, budget.total_ms
    odds = 1.0
    if ttft_ms is not None:
        odds = _within(prediction.ttft_ms, ttft_ms - elapsed_ms, prediction.ttft_spread)
    if tpot_ms is not None:
        odds *= _within(prediction.tpot_ms, tpot_ms, prediction.tpot_spread)
    if total_ms is not None:
        spread = max(prediction.ttft_spread, prediction.tpot_spread)
        odds = min(odds, _within(prediction.total_ms, total_ms - elapsed_ms, spread))
    return odds


def expected_cached_tokens(node: NodeState, variant: Variant, query: RouteQuery) -> int:
    """Prompt tokens expected to be warm: the session's last turn there, or matched prefix blocks.

    At least one token is always computed: the last one yields the first output.
    """
    tokens = 0
    hashes = query.analysis.prefix_hashes
    if hashes and node.prefix_blocks:
        tokens = matched_blocks(hashes, node.prefix_blocks) * BLOCK_TOKENS
    session = query.session
    if (
        session is not None
        and session.node_id == node.announcement.node_id
        and session.variant_digest == variant.digest
        and session.tokens > tokens
    ):
        tokens = session.tokens
    limit = query.analysis.prompt_tokens - 1
    return min(tokens, limit) if limit > 0 else 0


def step_ms(decode: tuple[tuple[int, float], ...], batch: int) -> float:
    """Milliseconds of one decode step with `batch` sequences, from a measured curve.

    Step time is close to affine in the batch size, so it is interpolated and extrapolated as a time, not as
    a speed, and never falls with the batch even where the measurements do.
    """
    low_batch, low_ms, slope = 0, 0.0, 0.0
    for size, per_sequence_tps in decode:
        if size <= low_batch or not per_sequence_tps > _MIN_TPS:
            continue
        here_ms = 1000.0 / per_sequence_tps
        if here_ms < low_ms:
            here_ms = low_ms
        if low_batch:
            slope = (here_ms - low_ms) / (size - low_batch)
        if size >= batch:
            return here_ms if not low_batch else low_ms + slope * (batch - low_batch)
        low_batch, low_ms = size, here_ms
    if not low_batch:
        low_batch, low_ms = 1, 1000.0 / _UNKNOWN_DECODE_TPS
    if slope == 0.0:
        slope = low_ms * _UNKNOWN_BATCH_SLOPE / low_batch
    return low_ms + slope * max(batch - low_batch, 0)


def _prefill_ms(tokens: int, tokens_per_s: float, beside_step_ms: float) -> float:
    """Prefill shares one engine loop with running decodes: each chunk waits for one of their steps."""
    compute_ms = 1000.0 * tokens / tokens_per_s
    if beside_step_ms == 0.0:
        return compute_ms
    return compute_ms + math.ceil(compute_ms / PREFILL_CHUNK_MS) * beside_step_ms


def _slot_wait_ms(active: int, slots: int, pending_decode_tokens: int, full_step_ms: float) -> float:
    """Until a slot is free, all slots decoding: E[first of `slots` to end], then one slot's share each.

    Remaining lengths are taken as uniform around their mean, whose first order statistic is
    2 * mean / (slots + 1).
    """
    mean_tokens = max(pending_decode_tokens, active) / active
    return full_step_ms * mean_tokens * (2.0 / (slots + 1) + (active - slots) / slots)


def _within(predicted_ms: float, limit_ms: float, spread: float) -> float:
    """Phi(ln(limit / predicted) / spread)."""
    if limit_ms <= 0.0:
        return 0.0
    if predicted_ms <= 0.0:
        return 1.0
    return 0.5 * _erfc(_log(predicted_ms / limit_ms) / (spread * _SQRT2))
