"""Whatever a server says, the parsers give a value or the one error they document."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.engines.openai_http.failures import UpstreamFailed, failure_of_status
from serving.engines.openai_http.metrics import MetricsUnreadable, parse_metrics
from serving.engines.openai_http.models import parse_models
from serving.engines.openai_http.sse import SseError, SseEvent, SseParser
from serving.engines.openai_http.tools import CallWriter
from serving.engines.openai_http.wire import parse_event

words = st.sampled_from(
    [
        "choices",
        "delta",
        "content",
        "text",
        "finish_reason",
        "tool_calls",
        "function",
        "arguments",
        "usage",
        "error",
        "code",
        "type",
        "object",
        "data",
        "id",
    ]
)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)
lines = st.builds(
    "{}{}{} {}".format,
    st.sampled_from(["vllm:num_requests_running", "sglang:token_usage", "vllm:cache_config_info", "# TYPE "]),
    st.sampled_from(["", '{model_name="m"}', '{block_size="16",num_gpu_blocks="9"}']),
    st.text(max_size=3),
    st.text(max_size=12) | st.floats().map(str),
)


@settings(max_examples=150, deadline=None)
@given(values, st.sampled_from(["", "error"]))
def test_any_json_event(value: Any, name: str) -> None:
    with suppress(UpstreamFailed):
        delta = parse_event(SseEvent(json.dumps(value), name))
        delta.text.encode("utf-8")
        CallWriter().write(delta.text, delta.calls)


@settings(max_examples=100, deadline=None)
@given(st.text(), st.binary())
def test_any_event_text_and_body(text: str, body: bytes) -> None:
    with suppress(UpstreamFailed):
        parse_event(SseEvent(text))
    assert len(failure_of_status(500, body).detail) < 200
    with suppress(UpstreamFailed):
        parse_models(text)


def test_deep_json() -> None:
    deep = "[" * 200_000
    with suppress(UpstreamFailed):
        parse_event(SseEvent(deep))
    failure_of_status(500, deep.encode())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=20), max_size=8))
def test_any_bytes(reads: list[bytes]) -> None:
    parser = SseParser()
    with suppress(SseError):
        for data in reads:
            parser.feed(data)


@settings(max_examples=150, deadline=None)
@given(st.lists(lines, max_size=4))
def test_any_metrics_page(page: list[str]) -> None:
    with suppress(MetricsUnreadable):
        metrics = parse_metrics("\n".join(page), model="m")
        assert 0 <= (metrics.running or 0) <= 10**9
        assert 0 <= (metrics.cache_used or 0) <= 1
