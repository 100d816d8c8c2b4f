"""Calls over the daemon's own API with the openai package, unchanged, and models of other families.

The files hold the small model's weights; chat templates and control tokens are those of a family. A bias
makes the model call by itself: it would not of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from edge_daemon_process import DaemonMaker

from gguf_rewrite import rewrite_gguf
from serving.engines.llama_cpp.bundled import MODEL, bundled_model, default_models_dir
from serving.engines.llama_cpp.prepare import prepare
from serving.tool_syntax import LLAMA, MISTRAL, MISTRAL_NAMED, CallSyntax
from tool_templates import CONTROLS, TEMPLATES

CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Lima"]}}, "required": ["city"]}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": CITY}}
USER: Any = {"role": "user", "content": "How is the weather in Lima?"}
FAMILIES = (LLAMA, MISTRAL, MISTRAL_NAMED)
# The tokens that open a call, by their place in the vocabulary; "{" is a bare one of Llama's.
OPENING = {LLAMA: ("14", "107"), MISTRAL: ("11",), MISTRAL_NAMED: ("11",)}


@pytest.fixture(params=FAMILIES, ids=["llama", "mistral", "mistral-named"])
def family(request: pytest.FixtureRequest) -> CallSyntax:
    syntax: CallSyntax = request.param
    return syntax


@pytest.fixture
def client(family: CallSyntax, daemons: DaemonMaker, tmp_path: Path) -> Iterator[openai.OpenAI]:
    (prepared,) = prepare(bundled_model(), ["Q4_0"], default_models_dir(), model=MODEL)
    path = tmp_path / "family.Q4_0.gguf"
    rewrite_gguf(prepared.path, path, template=TEMPLATES[family], tokens=CONTROLS)
    settings = {
        "ENGINE__KIND": "llama_cpp",
        "ENGINE__MODEL": str(path),
        "ENGINE__MODEL_NAME": "family",
        "ENGINE__SLOTS": "2",
        "ENGINE__LLAMA_CPP__SAMPLING__TEMPERATURE": "0",
    }
    daemon = daemons.start(settings)
    with openai.OpenAI(base_url=f"http://127.0.0.1:{daemon.port}/v1", api_key="any", max_retries=0) as client:
        yield client
    daemon.stop()
    path.unlink()


def ask(client: openai.OpenAI, **members: Any) -> tuple[str, list[tuple[str, str, str]], str]:
    """(content, [(id, name, arguments)], finish_reason); whole and streamed they must be the same."""
    asked: Any = {"model": "family", "messages": [USER], "tools": [WEATHER], "max_tokens": 160} | members
    choice = client.chat.completions.create(**asked).choices[0]
    made = [(c.function.name, c.function.arguments) for c in choice.message.tool_calls or ()]
    content, calls, reason = "", dict[int, list[str]](), ""
    for event in client.chat.completions.create(**asked, stream=True):
        for part in event.choices:
            content += part.delta.content or ""
            reason = part.finish_reason or reason
            for call in part.delta.tool_calls or ():
                so_far = calls.setdefault(call.index, [call.id, "", ""])
                so_far[1] += call.function.name or ""
                so_far[2] += call.function.arguments or ""
    streamed = [(name, arguments) for _, name, arguments in calls.values()]
    if reason != "length":
        assert (streamed, content) == (made, choice.message.content or "")
    assert reason == choice.finish_reason
    return content, [(c[0], c[1], c[2]) for c in calls.values()], reason


def test_calls_by_itself_and_forced(client: openai.OpenAI, family: CallSyntax) -> None:
    bias = {"logit_bias": dict.fromkeys(OPENING[family][:1], 100)}
    for members in (bias, {"tool_choice": "required"}, {"tool_choice": WEATHER}):
        content, calls, reason = ask(client, **members)
        assert (content, reason) == ("", "tool_calls")
        assert {name for _, name, _ in calls} == {"weather"}
        assert all(json.loads(arguments)["city"] in ("Oslo", "Lima") for _, _, arguments in calls)
        assert len({call_id for call_id, _, _ in calls}) == len(calls)
    # Cut off in the middle: all of it is text, and nothing of the opening is lost.
    content, calls, reason = ask(client, **bias, max_tokens=5)
    assert (calls, reason) == ([], "length")
    assert content.startswith(family.opens)
    # The control: what calls nothing is text, braces and all.
    content, calls, reason = ask(client, max_tokens=8)
    assert (bool(content), calls) == (True, [])
    text = client.chat.completions.create(
        model="family", messages=[USER], max_tokens=4, logit_bias={OPENING[family][0]: 100}
    )
    assert text.choices[0].message.content == ""


def test_the_conversation_goes_on(client: openai.OpenAI) -> None:
    whole: Any = client.chat.completions.create(
        model="family", messages=[USER], tools=[WEATHER], tool_choice="required", max_tokens=160
    )
    message = whole.choices[0].message
    results = [{"role": "tool", "tool_call_id": c.id, "content": "dry"} for c in message.tool_calls]
    content, calls, reason = ask(client, messages=[USER, message, *results], max_tokens=8)
    assert bool(content) is not bool(calls)
    assert reason in ("stop", "length", "tool_calls")
