"""Answers held to a format, and what is told about their tokens, by the real engine."""

from __future__ import annotations

import json
import math
import re

import pytest
from llama_driver import Driver, user

from tidegate.routing.domain import Cause, Failure, FinishReason, OutputFormat, Sampling

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2, "maxLength": 8},
        "age": {"type": "integer", "minimum": 30, "maximum": 39},
        "tags": {
            "type": "array",
            "items": {"enum": ["a", 'quo"ted', "\u00e9\n"]},
            "minItems": 1,
            "maxItems": 2,
        },
        "more": {"$ref": "#/$defs/node"},
    },
    "required": ["name", "age", "tags", "more"],
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"v": {"type": "number", "minimum": -1, "maximum": 1}, "next": {"type": "null"}},
            "required": ["v"],
        }
    },
}
CHAT = (user("Describe somebody."),)


@pytest.mark.parametrize("seed", [None, 1, 2])
async def test_an_answer_is_valid_against_its_schema(shared: Driver, seed: int | None) -> None:
    sampling = Sampling(temperature=0.0) if seed is None else Sampling(temperature=1.5, top_k=0, seed=seed)
    key = shared.submit(
        chat=CHAT, max_tokens=120, sampling=sampling, format=OutputFormat(json_schema=json.dumps(SCHEMA))
    )
    finish = await shared.finish(key)
    assert finish.result is FinishReason.STOP
    value = json.loads(shared.text(key))
    assert 2 <= len(value["name"]) <= 8
    assert 30 <= value["age"] <= 39
    assert 1 <= len(value["tags"]) <= 2
    assert set(value["tags"]) <= {"a", 'quo"ted', "\u00e9\n"}
    assert -1 <= value["more"]["v"] <= 1
    # Without the schema nothing like it comes: the model does not do this by itself.
    free = shared.submit(chat=CHAT, max_tokens=12, sampling=sampling)
    await shared.finish(free)
    assert not shared.text(free).startswith("{")


async def test_a_constrained_answer_is_replayed_and_goes_on(shared: Driver) -> None:
    format = OutputFormat(json_schema=json.dumps(SCHEMA))
    whole = shared.submit(chat=CHAT, max_tokens=120, format=format)
    await shared.finish(whole)
    tokens = shared.tokens(whole)
    rest = shared.submit(chat=CHAT, max_tokens=120, format=format, start_index=6, replay_token_ids=tokens[:6])
    await shared.finish(rest)
    assert shared.tokens(rest) == tokens[6:]
    wrong = shared.submit(chat=CHAT, format=format, start_index=1, replay_token_ids=(300,))
    failure = (await shared.finish(wrong)).result
    assert isinstance(failure, Failure)
    assert failure.cause is Cause.INVALID_INPUT


@pytest.mark.parametrize(
    ("format", "said"),
    [
        (OutputFormat(json_schema='{"type": "object", "minProperties": 1}'), "minProperties"),
        (OutputFormat(json_schema='{"oneOf": [{"required": 5}, {"required": 5}]}'), "required a list"),
        (OutputFormat(json_schema='{"enum": ["\\ud800"]}'), "half a character"),
        (OutputFormat(grammar="root ::= root"), "llama.cpp"),
        (OutputFormat(grammar="leaf ::= [a]"), "llama.cpp"),
        (OutputFormat(grammar="root ::= " + "(" * 5000 + "[a]" + ")" * 5000), "deep"),
        (OutputFormat(grammar="root ::= [a]{1,99999}"), "more than 1000"),
        (OutputFormat(grammar="root ::= [\\U0010FFFF]{3}"), ""),
    ],
)
async def test_a_format_that_cannot_be_is_a_clear_error_and_hurts_nobody(
    shared: Driver, format: OutputFormat, said: str
) -> None:
    child = shared.engine.child_pid
    key = shared.submit(chat=CHAT, max_tokens=8, format=format)
    result = (await shared.finish(key)).result
    if said:
        assert isinstance(result, Failure)
        assert result.cause is Cause.INVALID_INPUT
        assert said in result.detail
    after = shared.submit(chat=CHAT, max_tokens=2)
    assert (await shared.finish(after)).result is FinishReason.LENGTH
    assert shared.engine.child_pid == child


async def test_text_or_a_call(shared: Driver) -> None:
    schema = json.dumps({"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]})
    either = OutputFormat(json_schema=schema, or_text=True)
    text = shared.submit(chat=CHAT, max_tokens=6, format=either)
    forced = shared.submit(chat=CHAT, max_tokens=20, format=OutputFormat(json_schema=schema))
    await shared.finish(text)
    await shared.finish(forced)
    assert not shared.text(text).startswith("{")
    assert json.loads(shared.text(forced)) == {"a": 1}


async def test_log_probabilities_are_those_of_the_model(shared: Driver) -> None:
    plain = shared.submit(chat=CHAT, max_tokens=5)
    key = shared.submit(chat=CHAT, max_tokens=5, top_logprobs=3)
    await shared.finish(plain)
    await shared.finish(key)
    odds = [one for output in shared.outputs[key] for one in output.logprobs]
    assert [one.token_id for one in odds] == list(shared.tokens(key))
    assert b"".join(one.text for one in odds).decode() == shared.text(key)
    for one in odds:
        # Greedy: the chosen token is the likeliest.
        assert one.top[0].token_id == one.token_id
        assert [t.logprob for t in one.top] == sorted((t.logprob for t in one.top), reverse=True)
        assert one.margin == pytest.approx(
            math.exp(one.top[0].logprob) - math.exp(one.top[1].logprob), abs=1e-4
        )
        assert sum(math.exp(t.logprob) for t in one.top) <= 1.0 + 1e-6
        assert 0.0 <= one.entropy <= math.log(49_152)
    assert not any(output.logprobs for output in shared.outputs[plain])


async def test_a_bias_forbids_a_token(shared: Driver) -> None:
    plain = shared.submit(chat=CHAT, max_tokens=3)
    await shared.finish(plain)
    first = shared.tokens(plain)[0]
    biased = shared.submit(
        chat=CHAT,
        max_tokens=3,
        sampling=Sampling(temperature=0.0, logit_bias=((first, -100.0), (10**6, 5.0))),
    )
    await shared.finish(biased)
    assert first not in shared.tokens(biased)


async def test_a_pattern_is_kept_to(shared: Driver) -> None:
    for pattern in (r"^[A-Z]{2}-\d{3}$", r'^"[^\s"]{1,6}"(, \w+)?$', r"^é(lan|tude)\.$"):
        schema = json.dumps({"type": "string", "pattern": pattern})
        hot = Sampling(temperature=1.5, seed=3)
        key = shared.submit("A code:", max_tokens=60, sampling=hot, format=OutputFormat(json_schema=schema))
        assert (await shared.finish(key)).result is FinishReason.STOP
        assert re.search(pattern, json.loads(shared.text(key)))
