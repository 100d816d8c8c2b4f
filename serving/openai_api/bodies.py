"""The bodies clients send, as pydantic models.

Types are strict (no "5" for 5), unknown members are ignored as OpenAI's clients expect, and what this front
cannot do is refused by name: silently ignoring `tools` would be a wrong answer, not a smaller one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Discriminator, Field, PlainValidator, Tag
from pydantic_core import PydanticCustomError

from serving.openai_api.inputs import TidegateInputs

MAX_MESSAGES = 2048
MAX_STOPS = 16
MAX_TOOLS = 128
MAX_STOP_CHARS = 256
# As OpenAI allows.
MAX_TEXTS = 2048
INT32_MAX = 2**31 - 1
UNSUPPORTED = "unsupported_parameter"


def _bad(kind: str, message: str) -> PydanticCustomError:
    # The message must not be a template: it could hold braces.
    return PydanticCustomError(kind, "{text}", {"text": message})  # type: ignore[arg-type,unused-ignore]


def _refused(what: str, harmless: Callable[[Any], bool]) -> PlainValidator:
    def check(value: Any) -> None:
        if not harmless(value):
            raise _bad(UNSUPPORTED, f"{what} is not supported")

    return PlainValidator(check)


def _empty(value: Any) -> bool:
    return value is None or value is False or value == [] or value == {} or value == ""


def _is_one(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value == 1)


def _join_parts(value: Any) -> str:
    """Content as a string or as a list of text parts, joined without separator."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise _bad("string_type", "must be a string or a list of text parts")
    texts = []
    for index, part in enumerate(value):
        if not isinstance(part, dict):
            raise _bad("string_type", f"part {index} must be an object with type and text")
        kind = part.get("type")
        if kind not in ("text", "refusal"):
            shown = kind if isinstance(kind, str) and kind.isidentifier() and len(kind) <= 40 else "unknown"
            raise _bad(UNSUPPORTED, f"part {index} is of type {shown!r}; only text parts are supported")
        if not isinstance(part.get(kind), str):
            raise _bad("string_type", f"part {index} must have a string member {kind!r}")
        texts.append(part[kind])
    return "".join(texts)


def _one_prompt(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        if len(value) == 1 and isinstance(value[0], str):
            return value[0]
        if all(isinstance(item, str) for item in value):
            raise _bad(UNSUPPORTED, f"exactly one prompt is supported, got {len(value)}")
        raise _bad(UNSUPPORTED, "prompts of token ids are not supported, send text")
    raise _bad("string_type", "must be a string or a list with one string")


def _stops(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise _bad("string_type", "must be a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise _bad("too_long", f"at most {MAX_STOPS} strings are allowed, got {len(stops)}")
    if any(not stop or len(stop) > MAX_STOP_CHARS for stop in stops):
        raise _bad("string_type", f"each string must have 1 to {MAX_STOP_CHARS} characters")
    return tuple(dict.fromkeys(stops))


def _content_or_none(value: Any) -> str | None:
    return None if value is None else _join_parts(value)


MessageContent = Annotated[str | None, PlainValidator(_content_or_none)]
Prompt = Annotated[str, PlainValidator(_one_prompt)]
Stops = Annotated[tuple[str, ...], PlainValidator(_stops)]
Bias = Annotated[float, Field(ge=-100, le=100)]
OnlyOne = Annotated[None, _refused("more than one choice", _is_one)]


class _Body(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="ignore", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )


class CalledFunction(_Body):
    name: str = Field(max_length=64)
    arguments: str


class ToolCallBody(_Body):
    id: str | None = Field(default=None, max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(_Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: MessageContent = None
    name: str | None = Field(default=None, max_length=256)
    refusal: str | None = None
    tool_calls: list[ToolCallBody] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_call_id: str | None = Field(default=None, max_length=256)
    function_call: Annotated[None, _refused("function calling", _empty)] = None
    audio: Annotated[None, _refused("audio", _empty)] = None


class FunctionBody(_Body):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(_Body):
    type: Literal["function"] = "function"
    function: FunctionBody


class NamedFunction(_Body):
    name: str = Field(max_length=64)


class NamedTool(_Body):
    type: Literal["function"] = "function"
    function: NamedFunction


class AllowedTools(_Body):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=MAX_TOOLS)


class SomeTools(_Body):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _choice_kind(value: Any) -> str:
    if not isinstance(value, dict):
        return "<word>"
    return "<some>" if value.get("type") == "allowed_tools" else "<named>"


# The tags are in brackets, so that errors leave them out of the parameter's name.
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<word>")]
    | Annotated[NamedTool, Tag("<named>")]
    | Annotated[SomeTools, Tag("<some>")],
    Discriminator(_choice_kind),
]


class SchemaBody(_Body):
    name: str | None = None
    description: str | None = None
    # pydantic's own models have a `schema` of their own.
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Body):
    """`json_object` is any JSON object."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaBody | None = None


class StreamOptions(_Body):
    include_usage: bool | None = None


class GenerateBody(_Body):
    """What chat and plain completions share. `tidegate` holds the inputs OpenAI has no word for."""

    model: str | None = Field(default=None, max_length=256)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=INT32_MAX)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=INT32_MAX)
    min_p: float | None = Field(default=None, ge=0, le=1)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    repeat_penalty: float | None = Field(
        default=None, gt=0, le=10, validation_alias=AliasChoices("repeat_penalty", "repetition_penalty")
    )
    # llama-server's words.
    mirostat: int | None = Field(default=None, ge=0, le=2)
    mirostat_tau: float | None = Field(default=None, gt=0, le=100)
    mirostat_eta: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)
    stop: Stops = ()
    user: str | None = None
    tidegate: TidegateInputs | None = None
    n: OnlyOne = None
    logit_bias: dict[str, Bias] | None = Field(default=None, max_length=1024)
    # llama-server's word for a grammar in GBNF.
    grammar: str | None = None


class ChatBody(GenerateBody):
    """POST /v1/chat/completions."""

    # Fail fast: a hostile body must not make a million errors.
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=INT32_MAX)
    tools: list[ToolBody] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[None, _refused("function calling", _empty)] = None
    function_call: Annotated[
        None, _refused("forcing a function", lambda value: _empty(value) or value in ("none", "auto"))
    ] = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    modalities: Annotated[
        None, _refused("a modality but text", lambda value: _empty(value) or value == ["text"])
    ] = None
    audio: Annotated[None, _refused("audio", _empty)] = None
    prediction: Annotated[None, _refused("a predicted output", _empty)] = None
    web_search_options: Annotated[None, _refused("web search", lambda value: value is None)] = None


class CompletionBody(GenerateBody):
    """POST /v1/completions."""

    prompt: Prompt
    suffix: Annotated[None, _refused("a suffix", _empty)] = None
    echo: Annotated[None, _refused("echoing the prompt", _empty)] = None
    best_of: OnlyOne = None
    logprobs: int | None = Field(default=None, ge=0, le=20)


def _texts(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise _bad("string_type", "must be a string or a list of strings")
    if not all(isinstance(text, str) for text in texts):
        raise _bad(UNSUPPORTED, "texts of token ids are not supported, send strings")
    if len(texts) > MAX_TEXTS:
        raise _bad("too_long", f"at most {MAX_TEXTS} texts are allowed, got {len(texts)}")
    if not all(texts):
        raise _bad("string_type", "no text may be empty")
    return tuple(texts)


class EmbeddingsBody(_Body):
    """POST /v1/embeddings."""

    model: str | None = Field(default=None, max_length=256)
    input: Annotated[tuple[str, ...], PlainValidator(_texts)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[None, _refused("cutting vectors", lambda value: value is None)] = None
    user: str | None = None
    tidegate: TidegateInputs | None = None
