"""What the parent refuses before it reaches native code, which trusts its numbers. Pure."""

from __future__ import annotations

import math

from serving.engines.base import EngineRefused
from tidegate.routing.domain import Cause, Failure, Sampling, Work

MAX_INPUT_BYTES = 16 * 1024 * 1024
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1024

# (lowest, highest) allowed; None is the node's default and always allowed.
_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "frequency_penalty": (-100.0, 100.0),
    "presence_penalty": (-100.0, 100.0),
    "repeat_penalty": (0.01, 100.0),
    "mirostat": (0, 2),
    "mirostat_tau": (0.0, 100.0),
    "mirostat_eta": (0.0, 1.0),
}


def input_text(work: Work) -> str:
    """The decoded input of work that may be computed. Raises EngineRefused with INVALID_INPUT."""
    problem = _sampling_problem(work.sampling) or _stop_problem(work.stop)
    if not problem and len(work.input) > MAX_INPUT_BYTES:
        problem = f"the input of {len(work.input)} bytes is over the limit of {MAX_INPUT_BYTES}"
    if problem:
        raise EngineRefused(Failure(Cause.INVALID_INPUT, problem))
    try:
        return work.input.decode("utf-8")
    except UnicodeDecodeError:
        raise EngineRefused(Failure(Cause.INVALID_INPUT, "the input is no UTF-8")) from None


def _sampling_problem(sampling: Sampling) -> str:
    for name, (lowest, highest) in _RANGES.items():
        value = getattr(sampling, name)
        if value is not None and not (math.isfinite(value) and lowest <= value <= highest):
            return f"{name} must be between {lowest:g} and {highest:g}"
    return ""


def _stop_problem(stop: tuple[str, ...]) -> str:
    if len(stop) > MAX_STOPS:
        return f"{len(stop)} stop strings are over the limit of {MAX_STOPS}"
    if any(len(s) > MAX_STOP_CHARACTERS for s in stop):
        return f"a stop string is over {MAX_STOP_CHARACTERS} characters"
    return ""
