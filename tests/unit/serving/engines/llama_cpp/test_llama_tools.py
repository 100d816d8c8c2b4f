"""Calls in the syntaxes of model families, by a real model whose file has a template of that family."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from llama_driver import Driver, user

from gguf_rewrite import rewrite_gguf
from serving.engines.llama_cpp.bundled import MODEL
from serving.engines.llama_cpp.settings import LlamaCppSettings
from serving.openai_api.tools import AUTO, REQUIRED, Function, Tools
from serving.tool_syntax import GRANITE, HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, MISTRAL_WITH_IDS, CallSyntax
from tidegate.routing.domain import FinishReason, Message, Role, Sampling, Speeds
from tool_templates import CONTROLS, TEMPLATES

CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Lima"]}}, "required": ["city"]}
FUNCTIONS = (Function("weather", "tells the weather", CITY), Function("clock", "tells the time", CITY))
ASKED = (user("How is the weather in Lima?"),)
# The control tokens' places in the model's vocabulary.
TOKENS = {"[TOOL_CALLS]": 11, "[ARGS]": 12, "[CALL_ID]": 13, "<|python_tag|>": 14, "<|tool_call|>": 15}
CALLING = ((MISTRAL, "[TOOL_CALLS]"), (MISTRAL_NAMED, "[TOOL_CALLS]"), (LLAMA, "<|python_tag|>"))


@asynccontextmanager
async def engine_of(syntax: CallSyntax, model_path: Path, folder: Path) -> AsyncIterator[Driver]:
    path = folder / "family.gguf"
    rewrite_gguf(model_path, path, template=TEMPLATES[syntax], tokens=CONTROLS)
    driver = Driver(LlamaCppSettings(model_path=path, model=MODEL, slots=2, context_tokens=1024))
    # Nothing here depends on how fast the machine is.
    driver.engine._speeds = Speeds(500.0, ((1, 60.0), (2, 40.0)))
    await driver.start()
    try:
        yield driver
    finally:
        await driver.stop()
        path.unlink()


def forced(token: str, **more: object) -> Sampling:
    """The model begins with this token, and would go on with it wherever it may."""
    return Sampling(temperature=0.0, logit_bias=((TOKENS[token], 100.0),), **more)  # type: ignore[arg-type]


async def answer(driver: Driver, tools: Tools, sampling: Sampling, *, max_tokens: int = 300) -> str:
    chat = tools.introduce(ASKED)
    key = driver.submit(chat=chat, max_tokens=max_tokens, sampling=sampling, format=tools.format())
    await driver.finish(key)
    return driver.text(key)


@pytest.mark.parametrize("syntax", [HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, MISTRAL_WITH_IDS, GRANITE])
async def test_forced_calls_are_in_the_templates_syntax(
    syntax: CallSyntax, model_path: Path, tmp_path: Path
) -> None:
    async with engine_of(syntax, model_path, tmp_path) as driver:
        for choice, seed in ((REQUIRED, 1), ("weather", 1)):
            tools = Tools(FUNCTIONS, choice)
            text = await answer(driver, tools, Sampling(temperature=0.7, seed=seed))
            content, calls = tools.read(text)
            assert (content, bool(calls)) == ("", True), text
            assert all(json.loads(call.arguments)["city"] in ("Oslo", "Lima") for call in calls)
            assert text.startswith(("{", syntax.opens) if syntax.optional else syntax.opens)
            assert ('"parameters"' in text) is (syntax is LLAMA)
            assert len(calls) == 1 or choice == REQUIRED


@pytest.mark.parametrize(("syntax", "opening"), CALLING)
async def test_a_model_that_calls_by_itself_is_understood(
    syntax: CallSyntax, opening: str, model_path: Path, tmp_path: Path
) -> None:
    async with engine_of(syntax, model_path, tmp_path) as driver:
        tools = Tools(FUNCTIONS, AUTO)
        text = await answer(driver, tools, forced(opening))
        assert text.startswith(opening)
        content, calls = tools.read(text)
        assert (content, bool(calls)) == ("", True), text
        # Cut off in the middle of the call: all of it is text.
        short = await answer(driver, tools, forced(opening), max_tokens=6)
        assert text.startswith(short)
        assert tools.read(short) == (short, [])
        # The controls. Nothing is called that the model does not call:
        plain = await answer(driver, tools, Sampling(temperature=0.0), max_tokens=12)
        assert tools.read(plain) == (plain, [])
        # and without tools a control token prints nothing, as ever.
        key = driver.submit(chat=ASKED, max_tokens=3, sampling=forced(opening))
        finish = await driver.finish(key)
        assert (finish.result, driver.text(key)) == (FinishReason.LENGTH, "")
        assert driver.tokens(key) == (TOKENS[opening],) * 3


async def test_calls_may_come_behind_a_text_that_was_begun_elsewhere(
    model_path: Path, tmp_path: Path
) -> None:
    async with engine_of(MISTRAL, model_path, tmp_path) as driver:
        tools = Tools(FUNCTIONS, AUTO)
        begun = driver.submit(
            chat=tools.introduce(ASKED),
            max_tokens=2,
            sampling=Sampling(temperature=0.0),
            format=tools.format(),
        )
        await driver.finish(begun)
        replayed = (*driver.tokens(begun), TOKENS["[TOOL_CALLS]"])
        key = driver.submit(
            chat=tools.introduce(ASKED),
            max_tokens=300,
            sampling=Sampling(temperature=0.0),
            format=tools.format(),
            replay_token_ids=replayed,
            start_index=len(replayed),
        )
        await driver.finish(key)
        content, calls = tools.read(f"{driver.text(begun)}[TOOL_CALLS]{driver.text(key)}")
        assert (content, bool(calls)) == (driver.text(begun), True)


async def test_the_conversation_goes_on_after_calls(model_path: Path, tmp_path: Path) -> None:
    async with engine_of(LLAMA, model_path, tmp_path) as driver:
        tools = Tools(FUNCTIONS, AUTO)
        lines = [f'{{"name": "{name}", "arguments": {{"city": "Lima"}}}}' for name in ("weather", "clock")]
        results = [Message(Role.TOOL, "noon", name="clock"), Message(Role.TOOL, "dry", name="weather")]
        chat = tools.introduce((*ASKED, Message(Role.ASSISTANT, "\n".join(lines)), *results))
        key = driver.submit(chat=chat, max_tokens=8, format=tools.format())
        assert isinstance((await driver.finish(key)).result, FinishReason)
