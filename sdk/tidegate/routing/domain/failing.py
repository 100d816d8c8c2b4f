"""The one table from a failed attempt's cause to the error class its client sees."""

from __future__ import annotations

from collections.abc import Mapping

from tidegate.routing.domain.events import Code
from tidegate.routing.domain.work import Cause

CODE_OF_CAUSE: Mapping[Cause, Code] = {
    Cause.INVALID_INPUT: Code.INVALID_ARGUMENT,
    Cause.CONTEXT_LENGTH: Code.INVALID_ARGUMENT,
    Cause.UNKNOWN_VARIANT: Code.NOT_FOUND,
    Cause.OVERLOADED: Code.RESOURCE_EXHAUSTED,
    Cause.DEADLINE: Code.DEADLINE_EXCEEDED,
    Cause.INTERNAL: Code.INTERNAL,
    Cause.FENCED: Code.ALREADY_EXISTS,
    Cause.DRAINING: Code.UNAVAILABLE,
    Cause.ENGINE_CRASHED: Code.UNAVAILABLE,
    Cause.ENGINE_HUNG: Code.UNAVAILABLE,
    Cause.UPSTREAM: Code.UNAVAILABLE,
    Cause.NODE_LOST: Code.UNAVAILABLE,
    Cause.STALLED: Code.UNAVAILABLE,
}
