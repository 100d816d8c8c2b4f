"""What one attempt taught: the only input of everything that learns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tidegate.routing.prediction import Prediction


class Stage(StrEnum):
    """When an attempt is looked at. One attempt may teach several times, each time something else.

    WAITING: no first token yet, and already later than expected; its time is a lower bound. FIRST_TOKEN: the
    first token came. ENDED: nothing more comes.
    """

    WAITING = "waiting"
    FIRST_TOKEN = "first_token"
    ENDED = "ended"


class Outcome(StrEnum):
    """How an attempt ended, or that it has not."""

    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    BOUNCED = "bounced"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Observation:
    """One attempt, seen from the gateway. Times are milliseconds and count from the attempt's own start.

    `prediction` is the one that the attempt was sent with: what is learned is learned against it. With
    `censored` the attempt was cut off before its first token, and `actual_ttft_ms` is how long it had waited
    by then: a lower bound, not a measurement. `first_token_told` says that an observation of the stage
    FIRST_TOKEN came before this one, so that the time to the first token is not counted twice.

    `queue_ms`, `prefill_ms`, `cached_tokens`, `prompt_tokens` and `batch_size` are the node's own stamps;
    `prompt_tokens` 0 means that it gave none. `actual_tpot_ms` is None where the attempt did not get that far
    or where its reader was too slow to tell.
    """

    node_id: str
    variant_digest: str
    model: str
    hardware_class: str
    prediction: Prediction
    boot_id: str = ""
    stage: Stage = Stage.ENDED
    actual_ttft_ms: float | None = None
    actual_tpot_ms: float | None = None
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    cached_tokens: int = 0
    prompt_tokens: int = 0
    batch_size: int = 0
    output_tokens: int = 0
    max_tokens: int = 0
    stopped: bool = False
    outcome: Outcome = Outcome.FINISHED
    censored: bool = False
    first_token_told: bool = False
