"""From what a caller writes to a checked GenerateRequest."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, TypeVar

from tidegate.client.errors import InvalidRequest, from_serve_error
from tidegate.gateway.v1 import gateway_pb2 as pb
from tidegate.routing.domain import (
    Budget,
    Code,
    GenerateRequest,
    Message,
    OnMiss,
    OutputFormat,
    Placement,
    Role,
    Sampling,
    ServeError,
)
from tidegate.wire import codec

Prompt = str | Message | Sequence[Message | Mapping[str, str]]

W = TypeVar("W", Role, Placement, OnMiss)

_SAMPLING_FIELDS = tuple(f.name for f in dataclasses.fields(Sampling))
_MESSAGE_KEYS = frozenset({"role", "content", "name"})


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of generate, complete, route and explain. All are optional."""

    # Text taken as it is, without a chat template, instead of the prompt.
    raw_prompt: str
    # Name, alias, or "auto".
    model: str
    # Longest answer in tokens; 0 takes the operator's default.
    max_tokens: int
    # Strings that end the answer and are not part of it, at most 16.
    stop: str | Sequence[str]
    sampling: Sampling
    # Each of these overrides the same field of `sampling`.
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    repeat_penalty: float | None
    seed: int | None
    # Mirostat 1 or 2 instead of top_k, top_p and min_p; 0 is off.
    mirostat: int | None
    mirostat_tau: float | None
    mirostat_eta: float | None
    # Soft latency limits; the answer says whether they were met.
    budget: Budget | None
    # Least probability that the answer is good enough, in [0, 1]; None takes the operator's level.
    min_p_good: float | None
    placement: Placement | str
    # Label that limits where the request may go.
    data_class: str
    # Turns of one conversation share it, to find their warm prefix.
    session_id: str
    # -10 to 10, higher goes first.
    priority: int
    on_miss: OnMiss | str
    # Ask for `accepted` at the decision instead of with the first token; retries end there.
    early_accept: bool
    # Put the reasons of the decision into `accepted`.
    explain: bool
    # Chosen by the SDK when not given.
    request_id: str
    # LoRA adapter of the model to answer with.
    adapter: str
    # What the answer must look like, enforced while it is generated.
    format: OutputFormat
    # Give log probabilities with this many of the likeliest tokens (0 to 20); None gives none.
    top_logprobs: int | None
    # (token id, bias) pairs; part of `sampling`.
    logit_bias: tuple[tuple[int, float], ...]


_OPTIONS = frozenset(GenerateOptions.__annotations__)


def build_request(
    prompt: Prompt | None, options: GenerateOptions
) -> tuple[GenerateRequest, pb.GenerateRequest]:
    """The request in both forms. Raises InvalidRequest with `param`; nothing was sent."""
    unknown = options.keys() - _OPTIONS
    if unknown:
        raise TypeError(f"unknown option: {', '.join(sorted(unknown))}")
    try:
        request = _domain_request(prompt, options)
        message = codec.encode_generate_request(request)
        message.takes_following = True
        return request, message
    except ServeError as error:
        raise from_serve_error(error) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise _invalid("", f"a field has the wrong type: {error}") from error


def _domain_request(prompt: Prompt | None, options: GenerateOptions) -> GenerateRequest:
    given: dict[str, Any] = dict(options)
    raw_prompt = given.pop("raw_prompt", None)
    if prompt is not None and raw_prompt is not None:
        raise _invalid("raw_prompt", "both a prompt and a raw_prompt are given; give one")
    sampling = given.pop("sampling", None) or Sampling()
    overrides = {name: value for name in _SAMPLING_FIELDS if (value := given.pop(name, None)) is not None}
    return GenerateRequest(
        request_id=given.pop("request_id", None) or uuid.uuid4().hex,
        messages=() if prompt is None else _messages(prompt),
        prompt=raw_prompt,
        sampling=dataclasses.replace(sampling, **overrides),
        stop=_stops(given.pop("stop", ())),
        budget=given.pop("budget", None) or Budget(),
        placement=word(Placement, given.pop("placement", Placement.ANY), "placement"),
        on_miss=word(OnMiss, given.pop("on_miss", OnMiss.BEST_EFFORT), "on_miss"),
        **given,
    )


def _messages(prompt: Prompt) -> tuple[Message, ...]:
    if isinstance(prompt, str):
        if not prompt:
            raise _invalid("prompt", "is empty")
        return (Message(Role.USER, prompt),)
    if isinstance(prompt, Message):
        return (prompt,)
    return tuple(_message(item, f"messages[{index}]") for index, item in enumerate(prompt))


def _message(item: Message | Mapping[str, str], param: str) -> Message:
    if isinstance(item, Message):
        return item
    if not isinstance(item, Mapping):
        raise _invalid(param, "must be a Message or a mapping with role and content")
    unknown = item.keys() - _MESSAGE_KEYS
    if unknown:
        raise _invalid(param, f"unknown key {sorted(unknown)[0]!r}")
    for key in ("role", "content"):
        if not isinstance(item.get(key), str):
            raise _invalid(f"{param}.{key}", "must be a string")
    return Message(
        role=word(Role, item["role"], f"{param}.role"), content=item["content"], name=item.get("name", "")
    )


def _stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def word(kind: type[W], value: str, param: str) -> W:
    """The member that `value` names. Raises InvalidRequest."""
    try:
        return kind(value)
    except ValueError:
        words = ", ".join(member.value for member in kind)
        raise _invalid(param, f"must be one of {words}") from None


def _invalid(param: str, message: str) -> InvalidRequest:
    text = f"{param}: {message}" if param else message
    return InvalidRequest(text, code=Code.INVALID_ARGUMENT, reason="INVALID_FIELD", param=param)
