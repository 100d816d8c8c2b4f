"""Answers as OpenAI's clients read them. Pure; `chunk` runs per chunk."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from json.encoder import encode_basestring_ascii
from typing import Any

from serving.openai_api.odds import chat_logprobs, completion_logprobs
from serving.openai_api.tools import ToolReader, Tools, call_id_of
from tidegate.routing.domain import (
    Candidate,
    Chunk,
    Explanation,
    Finished,
    FinishReason,
    Route,
    TokenLogprob,
    Usage,
)

DONE = b"data: [DONE]\n\n"
_TEXT = "\0text\0"


def _dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def sse(body: dict[str, Any]) -> bytes:
    return b"data: " + _dumps(body).encode("ascii") + b"\n\n"


def usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def tidegate_body(
    request_id: str, route: Route | None, finished: Finished, explanation: Explanation | None
) -> dict[str, Any]:
    """The `tidegate` member: where the answer came from, its timings in ms, and its budget's outcome."""
    body: dict[str, Any] = {
        "request_id": request_id,
        "route": None if route is None else _route_body(route),
        "timings": asdict(finished.timings),
        "budget": finished.budget.value,
        "attempts": finished.attempts,
        "feedback_wanted": finished.feedback_wanted,
    }
    if explanation is not None:
        body["explanation"] = {
            "candidates": [_candidate_body(candidate) for candidate in explanation.candidates],
            "filtered": dict(explanation.filtered),
            "prompt_tokens": explanation.prompt_tokens,
            "difficulty": explanation.difficulty,
            "decision_ms": explanation.decision_ms,
        }
    return body


def _route_body(route: Route) -> dict[str, Any]:
    return asdict(route) | {"tier": route.tier.value}


def _candidate_body(candidate: Candidate) -> dict[str, Any]:
    return {
        "route": _route_body(candidate.route),
        "qualified": candidate.qualified,
        "cost_per_mtoken": candidate.cost_per_mtoken,
        "energy_per_mtoken": candidate.energy_per_mtoken,
        "link_per_mtoken": candidate.link_per_mtoken,
    }


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What stays the same from an answer's first byte to its last."""

    request_id: str
    created_s: int
    model: str
    fingerprint: str = ""

    @property
    def call_id(self) -> str:
        return f"call_{self.request_id}"

    def fields(self, prefix: str, kind: str) -> dict[str, Any]:
        return {
            "id": f"{prefix}-{self.request_id}",
            "object": kind,
            "created": self.created_s,
            "model": self.model,
            "system_fingerprint": self.fingerprint or None,
        }


def _finish_word(reason: FinishReason, *, called: bool = False) -> str:
    if reason is FinishReason.LENGTH:
        return "length"
    return "tool_calls" if called else "stop"


@dataclass(frozen=True, slots=True)
class WholeText:
    """A collected answer."""

    text: str
    logprobs: tuple[TokenLogprob, ...]
    finished: Finished


class ChatShape:
    """chat.completion and chat.completion.chunk."""

    def __init__(self, head: AnswerHead, *, include_usage: bool = False, tools: Tools | None = None) -> None:
        self._head = head
        self._tools = tools
        self._reader = None if tools is None else ToolReader(tools, head.call_id)
        self._chunk = head.fields("chatcmpl", "chat.completion.chunk")
        self._rest: dict[str, Any] = {"usage": None} if include_usage else {}
        self._before, self._after = _halves(self._body({"content": _TEXT}))

    def _body(
        self, delta: dict[str, Any], finish: str | None = None, odds: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": odds, "finish_reason": finish}
        return self._chunk | {"choices": [choice]} | self._rest

    def opening(self) -> bytes:
        return sse(self._body({"role": "assistant", "content": ""}))

    def delta(self, text: str) -> bytes:
        return self._before + encode_basestring_ascii(text).encode("ascii") + self._after

    def chunk(self, chunk: Chunk) -> bytes:
        """What to send for it, which may be nothing."""
        if self._reader is None and not chunk.logprobs:
            return self.delta(chunk.text) if chunk.text else b""
        deltas = [{"content": chunk.text}] if self._reader is None else self._reader.feed(chunk.text)
        if not chunk.logprobs:
            return b"".join(sse(self._body(delta)) for delta in deltas)
        *before, last = deltas or [{}]
        odds = chat_logprobs(chunk.logprobs)
        return b"".join(sse(self._body(delta)) for delta in before) + sse(self._body(last, odds=odds))

    def closing(self, finished: Finished, tidegate: dict[str, Any]) -> bytes:
        held = [] if self._reader is None else self._reader.end()
        called = self._reader is not None and self._reader.called
        last = self._body({}, _finish_word(finished.reason, called=called)) | {"tidegate": tidegate}
        return b"".join(sse(self._body(delta)) for delta in held) + sse(last)

    def usage(self, usage: Usage) -> bytes:
        return sse(self._chunk | {"choices": [], "usage": usage_body(usage)})

    def whole(self, whole: WholeText, tidegate: dict[str, Any]) -> dict[str, Any]:
        content, calls = (whole.text, []) if self._tools is None else self._tools.read(whole.text)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if calls:
            message |= {
                "content": content or None,
                "tool_calls": [
                    {
                        "id": call_id_of(self._head.call_id, index),
                        "type": "function",
                        "function": {"name": call.name, "arguments": call.arguments},
                    }
                    for index, call in enumerate(calls)
                ],
            }
        choice = {
            "index": 0,
            "message": message,
            "logprobs": chat_logprobs(whole.logprobs) if whole.logprobs else None,
            "finish_reason": _finish_word(whole.finished.reason, called=bool(calls)),
        }
        body = self._head.fields("chatcmpl", "chat.completion")
        return body | {"choices": [choice], "usage": usage_body(whole.finished.usage), "tidegate": tidegate}


class CompletionShape:
    """text_completion, whole and in chunks."""

    def __init__(self, head: AnswerHead, *, include_usage: bool = False, tools: Tools | None = None) -> None:
        self._offset = 0
        self._chunk = head.fields("cmpl", "text_completion")
        self._rest: dict[str, Any] = {"usage": None} if include_usage else {}
        self._before, self._after = _halves(self._body(_TEXT))

    def _body(
        self, text: str, finish: str | None = None, odds: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "logprobs": odds, "finish_reason": finish}
        return self._chunk | {"choices": [choice]} | self._rest

    def opening(self) -> bytes:
        return b""

    def delta(self, text: str) -> bytes:
        return self._before + encode_basestring_ascii(text).encode("ascii") + self._after

    def chunk(self, chunk: Chunk) -> bytes:
        """What to send for it, which may be nothing."""
        if not chunk.logprobs:
            return self.delta(chunk.text) if chunk.text else b""
        odds = completion_logprobs(chunk.logprobs, self._offset)
        self._offset += sum(map(len, odds["tokens"]))
        return sse(self._body(chunk.text, odds=odds))

    def closing(self, finished: Finished, tidegate: dict[str, Any]) -> bytes:
        return sse(self._body("", _finish_word(finished.reason)) | {"tidegate": tidegate})

    def usage(self, usage: Usage) -> bytes:
        return sse(self._chunk | {"choices": [], "usage": usage_body(usage)})

    def whole(self, whole: WholeText, tidegate: dict[str, Any]) -> dict[str, Any]:
        odds = completion_logprobs(whole.logprobs, 0) if whole.logprobs else None
        body = self._body(whole.text, _finish_word(whole.finished.reason), odds)
        return body | {"usage": usage_body(whole.finished.usage), "tidegate": tidegate}


Shape = ChatShape | CompletionShape


def _halves(body: dict[str, Any]) -> tuple[bytes, bytes]:
    """The bytes of a chunk before and after its text. Only the text follows what a client may have named."""
    before, _, after = _dumps(body).rpartition(_dumps(_TEXT))
    return b"data: " + before.encode("ascii"), after.encode("ascii") + b"\n\n"
