"""What one attempt taught: the only input of everything that learns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """How an attempt ended."""

    FINISHED = "finished"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    BOUNCED = "bounced"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Observation:
    """One attempt, seen from the gateway. Times are milliseconds.

    `actual_ttft_ms` and `actual_tpot_ms` are None where the attempt never got that far. With `censored`
    the attempt was cut off: its actual times are lower bounds, not measurements. `queue_ms`, `prefill_ms`,
    `cached_tokens`, `prompt_tokens` and `batch_size` are the node's own stamps. `network_ms`, the factors and
    the `predicted_` fields are those of the prediction the attempt was sent with, so that a correction is
    learned against the raw prediction and for the work that was really done: `predicted_fresh_share` is the
    share of the prompt that was expected to need computing. Left at 0, only the whole TTFT is compared.
    """

    node_id: str
    variant_digest: str
    hardware_class: str
    predicted_ttft_ms: float
    predicted_tpot_ms: float
    actual_ttft_ms: float | None = None
    actual_tpot_ms: float | None = None
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    network_ms: float = 0.0
    ttft_factor: float = 1.0
    tpot_factor: float = 1.0
    queue_factor: float = 1.0
    predicted_queue_ms: float = 0.0
    predicted_prefill_ms: float = 0.0
    predicted_fresh_share: float = 0.0
    cached_tokens: int = 0
    batch_size: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    outcome: Outcome = Outcome.FINISHED
    censored: bool = False
