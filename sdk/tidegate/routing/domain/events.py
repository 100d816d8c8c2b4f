"""What a front door sends to its client, and the errors it answers with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tidegate.routing.domain.chat import FinishReason, Timings, TokenLogprob, Unit, Usage
from tidegate.routing.domain.node import Tier
from tidegate.routing.domain.work import SequenceOutput


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes and what was expected of it. Predictions are milliseconds.

    `p_good` is None where neither a quality was asked for nor the reasons: no prompt is judged for nothing.
    `certified`: p_good is proven by this deployment's own outcomes; else it is a stand-in.
    """

    node_id: str
    node_name: str
    tier: Tier
    model: str
    variant_digest: str
    quantization: str = ""
    predicted_ttft_ms: float = 0.0
    predicted_tpot_ms: float = 0.0
    predicted_total_ms: float = 0.0
    p_meet: float = 1.0
    p_good: float | None = None
    expected_cached_tokens: int = 0
    at_risk: bool = False
    why: str = ""
    predicted_ttft_p95_ms: float = 0.0
    certified: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """One node that was looked at. Its cost contains energy and metered link, given again by themselves."""

    route: Route
    qualified: bool
    cost_per_mtoken: float
    energy_per_mtoken: float = 0.0
    link_per_mtoken: float = 0.0


@dataclass(frozen=True, slots=True)
class Explanation:
    """Reasons of a decision: at most 16 candidates, best first, and nodes removed per filter."""

    candidates: tuple[Candidate, ...] = ()
    filtered: Mapping[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    difficulty: float = 0.0
    decision_ms: float = 0.0


class BudgetOutcome(StrEnum):
    MET = "met"
    MISSED = "missed"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Accepted:
    route: Route
    explanation: Explanation | None = None
    resume_token: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Output tokens [first_index, first_index + count); `text` may be empty while text is held back.

    `vectors` are those of a request with `embed`, packed (see tidegate.routing.embedding).
    """

    attempt_no: int
    first_index: int
    count: int
    text: str
    token_ids: tuple[int, ...] = ()
    unit: Unit = Unit.TOKEN
    vectors: bytes = b""
    logprobs: tuple[TokenLogprob, ...] = ()

    @classmethod
    def of(cls, output: SequenceOutput, attempt_no: int) -> Chunk:
        """What an attempt's output is to a client."""
        return cls(
            attempt_no=attempt_no,
            first_index=output.first_index,
            count=output.count,
            text=output.text,
            token_ids=output.token_ids,
            unit=output.unit,
            vectors=output.vectors,
            logprobs=output.logprobs,
        )


@dataclass(frozen=True, slots=True)
class Restarted:
    """The answer starts again from index 0; what came before is void."""

    attempt_no: int
    cause: str
    route: Route


@dataclass(frozen=True, slots=True)
class Finished:
    reason: FinishReason
    usage: Usage
    timings: Timings
    budget: BudgetOutcome = BudgetOutcome.NONE
    attempts: int = 1
    feedback_wanted: bool = False


GenerateEvent = Accepted | Chunk | Restarted | Finished


class Code(StrEnum):
    """Error classes of the front doors; names are those of gRPC."""

    INVALID_ARGUMENT = "invalid_argument"
    UNAUTHENTICATED = "unauthenticated"
    PERMISSION_DENIED = "permission_denied"
    NOT_FOUND = "not_found"
    ALREADY_EXISTS = "already_exists"
    FAILED_PRECONDITION = "failed_precondition"
    RESOURCE_EXHAUSTED = "resource_exhausted"
    UNAVAILABLE = "unavailable"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"
    UNIMPLEMENTED = "unimplemented"
    INTERNAL = "internal"


class ServeError(Exception):
    """A request that gets an error instead of (the rest of) its answer.

    `reason` is a stable UPPER_SNAKE word for programs, `message` a sentence for people without prompt
    text, `retry_after_ms` when trying again later makes sense, `param` the offending field if one is.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        reason: str = "",
        retry_after_ms: float | None = None,
        param: str = "",
        details: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason or code.name
        self.retry_after_ms = retry_after_ms
        self.param = param
        self.details: Mapping[str, str] = dict(details or {})
