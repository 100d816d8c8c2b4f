"""From bytes and headers to the domain's GenerateRequest. Pure; every refusal is a ServeError."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from serving.openai_api.bodies import (
    UNSUPPORTED,
    ChatBody,
    ChatMessage,
    CompletionBody,
    EmbeddingsBody,
    GenerateBody,
    NamedTool,
    SomeTools,
)
from serving.openai_api.errors import invalid
from serving.openai_api.inputs import NO_INPUTS, PREFIX, TidegateInputs, header_values
from serving.openai_api.tools import AUTO, REQUIRED, Function, ToolCall, Tools
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

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# A JSON string; one that never ends matches up to the end, which keeps the search linear.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_ROLES = {"developer": Role.SYSTEM}

# Schema or grammar of an answer, as the wire allows it.
MAX_FORMAT_CHARS = 65_536
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}

MAX_VALUES = 50_000
"""Most objects, lists and members of one body: parsing holds the event loop for about 1 us each."""

_Body = TypeVar("_Body", bound=BaseModel)


def valid_request_id(value: str | None) -> bool:
    return value is not None and _REQUEST_ID.fullmatch(value) is not None


def parse_body(model: type[_Body], data: bytes) -> _Body:
    """Raises ServeError(INVALID_ARGUMENT) for bad JSON, bad UTF-8, too much structure and wrong members."""
    if has_more_values(data, MAX_VALUES):
        raise invalid(f"The request body has more than {MAX_VALUES} values", reason="TOO_MANY_VALUES")
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise _refusal(error) from None


def has_more_values(data: bytes, limit: int) -> bool:
    """Whether JSON `data` has more than `limit` commas and brackets outside of its strings."""
    if _structure(data) <= limit:
        return False
    return _structure(_STRING.sub(b"", data)) > limit


def _structure(data: bytes) -> int:
    return data.count(b",") + data.count(b"{") + data.count(b"[")


def parse_headers(headers: Mapping[str, str]) -> TidegateInputs:
    """The `x-tidegate-*` inputs. Raises ServeError(INVALID_ARGUMENT) naming the header."""
    found = header_values(headers)
    if not found:
        return NO_INPUTS
    try:
        return TidegateInputs.model_validate_strings(found)
    except ValidationError as error:
        raise _refusal(error, header=True) from None


def _refusal(error: ValidationError, *, header: bool = False) -> ServeError:
    """The first fault of `error`, without the input that caused it."""
    first = error.errors(include_url=False, include_input=False)[0]
    kind = first["type"]
    if kind == "json_invalid":
        detail = str(first.get("ctx", {}).get("error", "syntax error"))
        return invalid(f"The request body is not valid JSON: {detail}", reason="INVALID_JSON")
    param = _header_param(first["loc"]) if header else _param(first["loc"])
    if not param:
        return invalid("The request body must be a JSON object", reason="INVALID_JSON")
    if kind == "missing":
        return invalid(f"Missing required parameter: '{param}'", param, "MISSING_REQUIRED_PARAMETER")
    reason = UNSUPPORTED.upper() if kind == UNSUPPORTED else "INVALID_VALUE"
    if kind == "extra_forbidden":
        return invalid(f"Unknown parameter: '{param}'", param, "UNKNOWN_PARAMETER")
    if kind.endswith("_type"):
        reason = "INVALID_TYPE"
    return invalid(f"Invalid '{param}': {first['msg']}", param, reason)


def _param(loc: tuple[int | str, ...]) -> str:
    """("messages", 0, "content") -> messages[0].content"""
    path = ""
    for part in loc:
        if isinstance(part, str) and part.startswith("<"):
            continue  # the tag of a union
        path += f"[{part}]" if isinstance(part, int) else (f".{part}" if path else str(part))
    return path[:200]


def _header_param(loc: tuple[int | str, ...]) -> str:
    return (PREFIX + str(loc[0]).replace("_", "-"))[:200]


def to_request(
    body: GenerateBody | EmbeddingsBody,
    inputs: TidegateInputs,
    *,
    request_id: str,
    tenant: str,
    elapsed_ms: float = 0.0,
) -> GenerateRequest:
    """`inputs` are the headers'; `elapsed_ms` is what reading the body took and counts against the deadline.

    Raises ServeError(DEADLINE_EXCEEDED) when nothing is left of it.
    """
    asked = body.tidegate.over(inputs) if body.tidegate else inputs
    remaining_ms = None if asked.deadline_ms is None else asked.deadline_ms - elapsed_ms
    if remaining_ms is not None and remaining_ms <= 0:
        raise ServeError(Code.DEADLINE_EXCEEDED, "The deadline passed while the request was read")
    return GenerateRequest(
        request_id=request_id,
        model=body.model or "auto",
        tenant=tenant,
        budget=Budget(asked.ttft_ms, asked.tpot_ms, asked.total_ms, asked.target),
        min_p_good=asked.quality,
        placement=asked.placement or Placement.ANY,
        data_class=asked.data_class or "",
        session_id=asked.session or "",
        priority=asked.priority or 0,
        on_miss=asked.on_miss or OnMiss.BEST_EFFORT,
        early_accept=bool(asked.early_accept),
        explain=bool(asked.explain),
        adapter=asked.adapter or "",
        remaining_ms=remaining_ms,
        **_what_is_asked(body),
    )


def _what_is_asked(body: GenerateBody | EmbeddingsBody) -> dict[str, Any]:
    if isinstance(body, EmbeddingsBody):
        return {"embed": body.input}
    tools = tools_of(body)
    return {
        "sampling": _sampling(body),
        "stop": body.stop,
        "format": _format(body, tools),
        "top_logprobs": _top_logprobs(body),
        **_text_and_length(body, tools),
    }


def tools_of(body: GenerateBody) -> Tools | None:
    """What the answer may call. Raises ServeError(INVALID_ARGUMENT)."""
    if not isinstance(body, ChatBody) or not body.tools or body.tool_choice == "none":
        if isinstance(body, ChatBody) and body.tool_choice not in (None, "none", "auto") and not body.tools:
            raise invalid("tool_choice needs tools", "tool_choice")
        return None
    functions = tuple(
        Function(f.name, f.description or "", f.parameters or _NO_PARAMETERS)
        for f in (tool.function for tool in body.tools)
    )
    names = [function.name for function in functions]
    if len(set(names)) < len(names):
        raise invalid("Two tools have the same name", "tools")
    choice = body.tool_choice
    if isinstance(choice, NamedTool | SomeTools):
        some = [choice] if isinstance(choice, NamedTool) else choice.allowed_tools.tools
        wanted = {tool.function.name for tool in some}
        if not wanted <= set(names):
            raise invalid("tool_choice names a function that is not among the tools", "tool_choice")
        if isinstance(choice, NamedTool):
            return Tools(functions, choice.function.name)
        return Tools(tuple(f for f in functions if f.name in wanted), choice.allowed_tools.mode)
    return Tools(functions, REQUIRED if choice == "required" else AUTO)


def _format(body: GenerateBody, tools: Tools | None) -> OutputFormat:
    said = body.response_format if isinstance(body, ChatBody) else None
    wanted = OutputFormat(grammar=body.grammar or "")
    if said is not None and said.type != "text":
        if said.type == "json_schema" and said.json_schema is None:
            raise invalid("response_format.json_schema is missing", "response_format.json_schema")
        schema = {"type": "object"} if said.json_schema is None else said.json_schema.schema_
        if wanted:
            raise invalid("Both a grammar and a response_format are given; give one", "response_format")
        wanted = OutputFormat(json_schema=json.dumps(schema, ensure_ascii=False))
    if tools is not None:
        if wanted:
            raise invalid("Tools and a response format are given; give one", "response_format")
        wanted = tools.format()
    if len(wanted.json_schema) > MAX_FORMAT_CHARS or len(wanted.grammar) > MAX_FORMAT_CHARS:
        param = "tools" if tools is not None else "response_format"
        raise invalid(f"It is longer than {MAX_FORMAT_CHARS} characters", param)
    return wanted


def _top_logprobs(body: GenerateBody) -> int | None:
    if isinstance(body, CompletionBody):
        return body.logprobs
    assert isinstance(body, ChatBody)
    if not body.logprobs:
        if body.top_logprobs:
            raise invalid("top_logprobs needs logprobs", "top_logprobs")
        return None
    return body.top_logprobs or 0


def _text_and_length(body: GenerateBody, tools: Tools | None) -> dict[str, Any]:
    if isinstance(body, ChatBody):
        called = {c.id: c.function.name for m in body.messages for c in m.tool_calls or () if c.id}
        messages = tuple(_message(message, called, index) for index, message in enumerate(body.messages))
        return {
            "messages": messages if tools is None else tools.introduce(messages),
            "max_tokens": body.max_completion_tokens or body.max_tokens or 0,
        }
    assert isinstance(body, CompletionBody)
    return {"prompt": body.prompt, "max_tokens": body.max_tokens or 0}


def _message(message: ChatMessage, called: Mapping[str, str], index: int) -> Message:
    """`called` are the functions' names by the ids of earlier calls."""
    role = _ROLES.get(message.role) or Role(message.role)
    calls = [ToolCall(c.function.name, c.function.arguments).line() for c in message.tool_calls or ()]
    said = message.refusal if message.content is None else message.content
    if said is None and not calls:
        param = f"messages[{index}].content"
        raise invalid(f"Missing required parameter: '{param}'", param, "MISSING_REQUIRED_PARAMETER")
    content = "\n".join([*([said] if said else []), *calls])
    name = message.name or (called.get(message.tool_call_id, "") if message.tool_call_id else "")
    return Message(role=role, content=content, name=name)


def _sampling(body: GenerateBody) -> Sampling:
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        # -1 is what vLLM's users write for "off"; the domain says 0.
        top_k=None if body.top_k is None else max(0, body.top_k),
        min_p=body.min_p,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        repeat_penalty=body.repeat_penalty,
        # OpenAI's seeds are signed, the wire's are not: equal seeds stay equal.
        seed=None if body.seed is None else body.seed % 2**64,
        logit_bias=_biases(body.logit_bias or {}),
        mirostat=body.mirostat,
        mirostat_tau=body.mirostat_tau,
        mirostat_eta=body.mirostat_eta,
    )


def _biases(bias: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    if not all(token.isdecimal() and token.isascii() and len(token) < 10 for token in bias):
        raise invalid("The keys of logit_bias must be token ids", "logit_bias")
    return tuple((int(token), value) for token, value in bias.items())
