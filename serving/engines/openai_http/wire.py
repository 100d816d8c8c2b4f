"""Requests to and stream events from an OpenAI-compatible server."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from serving.engines.call_grammar import call_grammar
from serving.engines.openai_http.failures import failure_of_error, upstream_failed
from serving.engines.openai_http.sse import SseEvent
from serving.engines.openai_http.tools import NoFunctions, chat_fields, plain_turn
from tidegate.routing.domain import (
    Failure,
    FinishReason,
    InputKind,
    OutputFormat,
    Sampling,
    Usage,
    Work,
)
from tidegate.routing.embedding import unpack_texts
from tidegate.routing.prefix import parse_canonical

_SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "seed",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
)
_ABORTED = frozenset({"abort", "aborted", "error", "cancelled", "canceled"})


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """`path` below the API's base and the JSON body."""

    path: str
    body: dict[str, Any]


def upstream_request(
    work: Work, *, model: str, include_usage: bool, is_llama_server: bool = False
) -> UpstreamRequest:
    """Raises ValueError when the work's input is not what its kind says, NoFunctions among them."""
    if work.input_kind is InputKind.EMBED:
        texts = list(unpack_texts(work.input))
        return UpstreamRequest("/embeddings", {"model": model, "input": texts, "encoding_format": "float"})
    body: dict[str, Any] = {"model": model, "stream": True}
    if include_usage:
        body["stream_options"] = {"include_usage": True}
    if work.max_tokens > 0:
        body["max_tokens"] = work.max_tokens
    if is_llama_server:
        body["timings_per_token"] = True
    elif work.stop:
        body["stop"] = list(work.stop)
    body.update(sampling_fields(work.sampling))
    body.update(_format_fields(work.format, is_llama_server=is_llama_server))
    if work.input_kind is InputKind.CHAT:
        messages = parse_canonical(work.input)
        if not messages:
            raise ValueError("a chat needs at least one message")
        if work.format.or_text and not is_llama_server:
            body.update(chat_fields(messages))
        else:
            body["messages"] = [plain_turn(message) for message in messages]
        return UpstreamRequest("/chat/completions", body)
    if work.format.or_text and not is_llama_server:
        raise NoFunctions
    body["prompt"] = work.input.decode("utf-8")
    return UpstreamRequest("/completions", body)


def sampling_fields(sampling: Sampling) -> dict[str, Any]:
    """Only what is set. vLLM and SGLang call the repeat penalty repetition_penalty: both names are sent."""
    fields: dict[str, Any] = {
        name: value for name in _SAMPLING_FIELDS if (value := getattr(sampling, name)) is not None
    }
    if sampling.repeat_penalty is not None:
        fields["repeat_penalty"] = fields["repetition_penalty"] = sampling.repeat_penalty
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    return fields


def _format_fields(format: OutputFormat, *, is_llama_server: bool) -> dict[str, Any]:
    """llama-server gets our own grammar, which refuses what it cannot enforce. Raises ValueError for that."""
    if not format:
        return {}
    if is_llama_server:
        grammar = format.grammar or call_grammar(format.json_schema, or_text=format.or_text)
        return {"grammar": grammar}
    if format.or_text:
        return {}  # the server is given the functions themselves
    schema = {"name": "answer", "schema": json.loads(format.json_schema), "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


@dataclass(frozen=True, slots=True)
class Delta:
    """What one event of a stream gave. `count` is 1 for an event that carries output, else 0.

    `calls` are pieces of tool calls. `finish` is a FinishReason, or the Failure of a generation that the
    server broke off. `done` marks the end of the stream.
    """

    text: str = ""
    count: int = 0
    calls: tuple[dict[str, Any], ...] = ()
    finish: FinishReason | Failure | None = None
    usage: Usage | None = None
    done: bool = False


def parse_event(event: SseEvent) -> Delta:
    """Raises UpstreamFailed on an error event and on what is no chunk of a completion."""
    if event.data.strip() == "[DONE]":
        return Delta(done=True)
    try:
        chunk = json.loads(event.data)
    except (ValueError, RecursionError):
        raise upstream_failed("the upstream server's stream holds an event that is not JSON") from None
    if not isinstance(chunk, dict):
        raise upstream_failed("the upstream server's stream holds an event that is no object")
    error = chunk.get("error") or (chunk if event.name == "error" or chunk.get("object") == "error" else None)
    if error:
        return Delta(finish=failure_of_error(error))
    usage = parse_usage(chunk.get("usage")) or parse_timings(chunk.get("timings"))
    choices = chunk.get("choices")
    if not choices:
        return Delta(usage=usage)
    if not isinstance(choices, list) or not isinstance(choices[0], dict):
        raise upstream_failed("the upstream server's stream holds a chunk without choices")
    text, counts = _content(choices[0])
    calls = _calls(choices[0])
    count = int(counts or bool(calls))
    return Delta(
        text=text, count=count, calls=calls, finish=_finish(choices[0].get("finish_reason")), usage=usage
    )


def _content(choice: dict[str, Any]) -> tuple[str, bool]:
    """Text, and whether output was made at all: reasoning is output that is not part of the answer."""
    delta = choice.get("delta", choice)
    if not isinstance(delta, dict):
        raise upstream_failed("the upstream server's stream holds a chunk without a delta")
    text = delta.get("content") if "delta" in choice else choice.get("text")
    if text is not None and not isinstance(text, str):
        raise upstream_failed("the upstream server's stream holds a delta that is not text")
    reasoning = delta.get("reasoning_content") or delta.get("reasoning")
    return _encodable(text or ""), bool(text or reasoning)


def _calls(choice: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    delta = choice.get("delta")
    calls = delta.get("tool_calls") if isinstance(delta, dict) else None
    if not calls:
        return ()
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise upstream_failed("the upstream server's stream holds tool calls that are no list of objects")
    return tuple(calls)


def _encodable(text: str) -> str:
    """JSON escapes can spell half a surrogate pair, which no UTF-8 can carry."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _finish(reason: Any) -> FinishReason | Failure | None:
    if reason is None or reason == "":
        return None
    if reason in _ABORTED:
        return failure_of_error({"type": "aborted"})
    return FinishReason.LENGTH if reason == "length" else FinishReason.STOP


def parse_usage(usage: Any) -> Usage | None:
    """None when the server said nothing usable."""
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    return Usage(
        prompt_tokens=whole(usage.get("prompt_tokens")),
        completion_tokens=whole(usage.get("completion_tokens")),
        cached_tokens=whole(cached),
    )


def parse_timings(timings: Any) -> Usage | None:
    """llama-server's counts so far; None from other servers."""
    if not isinstance(timings, dict):
        return None
    cached = whole(timings.get("cache_n"))
    return Usage(
        prompt_tokens=cached + whole(timings.get("prompt_n")),
        completion_tokens=whole(timings.get("predicted_n")),
        cached_tokens=cached,
    )


def whole(value: Any) -> int:
    """A count as a server says it; 0 for what cannot be one."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31 else 0
