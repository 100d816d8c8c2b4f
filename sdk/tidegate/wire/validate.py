"""The limits of a request, checked on domain values: by clients before sending, by front doors on arrival."""

from __future__ import annotations

import math
import re

from tidegate.routing.domain import Budget, GenerateRequest, Message, OutputFormat, Sampling
from tidegate.routing.embedding import MAX_INPUTS
from tidegate.wire.common import MAX_TOP_LOGPROBS, invalid

MAX_STOPS = 16
# A megabyte of empty messages would hold a server for seconds.
MAX_MESSAGES = 2048
MAX_PRIORITY = 10
MAX_INT32 = 2**31 - 1
MAX_UINT64 = 2**64 - 1
MAX_LABEL_CHARS = 256
MAX_FORMAT_CHARS = 65_536
MAX_BIASES = 1024

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")

# (field, lowest, highest, whether the lowest itself is allowed)
_SAMPLING_RANGES = (
    ("temperature", 0.0, 2.0, True),
    ("top_p", 0.0, 1.0, False),
    ("min_p", 0.0, 1.0, True),
    ("frequency_penalty", -2.0, 2.0, True),
    ("presence_penalty", -2.0, 2.0, True),
    ("repeat_penalty", 0.0, 100.0, False),
    ("mirostat_tau", 0.0, 100.0, False),
    ("mirostat_eta", 0.0, 1.0, False),
)


def check_request(request: GenerateRequest) -> GenerateRequest:
    """Returns the request itself; raises ServeError(INVALID_ARGUMENT, param=field) at the first fault."""
    check_request_id(request.request_id)
    _check_input(request)
    if not 0 <= request.max_tokens <= MAX_INT32:
        raise invalid("max_tokens", "must be between 0 (the operator's default) and 2147483647")
    _check_stops(request.stop)
    check_sampling(request.sampling)
    check_format(request.format)
    if request.top_logprobs is not None and not 0 <= request.top_logprobs <= MAX_TOP_LOGPROBS:
        raise invalid("top_logprobs", f"must be between 0 and {MAX_TOP_LOGPROBS}")
    check_budget(request.budget)
    if request.min_p_good is not None and not 0.0 <= request.min_p_good <= 1.0:
        raise invalid("min_p_good", "must be in [0, 1]")
    if not -MAX_PRIORITY <= request.priority <= MAX_PRIORITY:
        raise invalid("priority", f"must be between -{MAX_PRIORITY} and {MAX_PRIORITY}")
    for name in ("model", "data_class", "session_id", "adapter"):
        value = getattr(request, name)
        if len(value) > MAX_LABEL_CHARS:
            raise invalid(name, f"is longer than {MAX_LABEL_CHARS} characters")
        _check_text(value, name)
    return request


def check_request_id(request_id: str) -> str:
    """Returns it; raises ServeError(INVALID_ARGUMENT)."""
    if not _REQUEST_ID.match(request_id):
        raise invalid("request_id", "must be 1 to 128 characters of [A-Za-z0-9._:-]")
    return request_id


def check_sampling(sampling: Sampling, param: str = "sampling") -> None:
    for name, low, high, closed in _SAMPLING_RANGES:
        value = getattr(sampling, name)
        if value is None:
            continue
        if not (low <= value <= high) or (value == low and not closed):
            raise invalid(f"{param}.{name}", f"must be in {'[' if closed else '('}{low:g}, {high:g}]")
    if sampling.top_k is not None and not 0 <= sampling.top_k <= MAX_INT32:
        raise invalid(f"{param}.top_k", "must be 0 (off) or above")
    if sampling.mirostat not in (None, 0, 1, 2):
        raise invalid(f"{param}.mirostat", "must be 0 (off), 1 or 2")
    if sampling.seed is not None and not 0 <= sampling.seed <= MAX_UINT64:
        raise invalid(f"{param}.seed", "must be between 0 and 2**64 - 1")
    if len(sampling.logit_bias) > MAX_BIASES:
        raise invalid(f"{param}.logit_bias", f"has more than {MAX_BIASES} entries")
    if any(not (0 <= token <= MAX_INT32 and -100.0 <= bias <= 100.0) for token, bias in sampling.logit_bias):
        raise invalid(f"{param}.logit_bias", "needs token ids of at least 0 and values in [-100, 100]")


def check_format(format: OutputFormat) -> None:
    """Sizes only: what a schema or grammar says is the engine's to judge."""
    for name in ("json_schema", "grammar"):
        text = getattr(format, name)
        if len(text) > MAX_FORMAT_CHARS:
            raise invalid(f"format.{name}", f"is longer than {MAX_FORMAT_CHARS} characters")
        _check_text(text, f"format.{name}")
    if format.json_schema and format.grammar:
        raise invalid("format", "both a schema and a grammar are given; give one")


def check_budget(budget: Budget, param: str = "budget") -> None:
    for name in ("ttft_ms", "tpot_ms", "total_ms"):
        value = getattr(budget, name)
        if value is not None and not (value > 0.0 and math.isfinite(value)):
            raise invalid(f"{param}.{name}", "must be above 0 milliseconds")
    if budget.target_share is not None and not 0.0 < budget.target_share < 1.0:
        raise invalid(f"{param}.target_share", "must be between 0 and 1, both excluded")


def _check_input(request: GenerateRequest) -> None:
    if request.embed:
        _check_embed(request)
        return
    if request.prompt is not None and request.messages:
        raise invalid("input", "both messages and a prompt are given; give one")
    if request.prompt is not None:
        if not request.prompt:
            raise invalid("prompt", "is empty")
        _check_text(request.prompt, "prompt")
        return
    if not request.messages:
        raise invalid("input", "neither messages nor a prompt is given")
    for index, message in enumerate(request.messages):
        _check_message(message, f"messages[{index}]")


def _check_embed(request: GenerateRequest) -> None:
    if request.prompt is not None or request.messages:
        raise invalid("input", "both texts to embed and a prompt are given; give one")
    if len(request.embed) > MAX_INPUTS:
        raise invalid("inputs", f"has {len(request.embed)} entries, at most {MAX_INPUTS} are allowed")
    for index, text in enumerate(request.embed):
        if not text:
            raise invalid(f"inputs[{index}]", "is empty")
        _check_text(text, f"inputs[{index}]")


def _check_message(message: Message, param: str) -> None:
    _check_text(message.content, f"{param}.content")
    _check_text(message.name, f"{param}.name")


def _check_stops(stops: tuple[str, ...]) -> None:
    if len(stops) > MAX_STOPS:
        raise invalid("stop", f"at most {MAX_STOPS} strings are allowed")
    for index, stop in enumerate(stops):
        if not stop:
            raise invalid(f"stop[{index}]", "is empty")
        _check_text(stop, f"stop[{index}]")


def _check_text(text: str, param: str) -> None:
    """Lone surrogates have no UTF-8 form: gRPC would answer them with a bare UNKNOWN."""
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise invalid(param, "is not valid Unicode text (lone surrogate)") from None
