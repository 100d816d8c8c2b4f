"""Settings, models and the outbox."""

from __future__ import annotations

import asyncio

import pytest

from serving.engines.openai_http import OpenAiHttpSettings, unnamed_digest
from serving.engines.openai_http.failures import UpstreamFailed
from serving.engines.openai_http.models import ListedModel, parse_models, settle_model
from serving.engines.openai_http.outbox import Outbox
from tidegate.routing.domain import (
    AttemptKey,
    Finish,
    FinishReason,
    FirstToken,
    ReplayClass,
    SequenceOutput,
    Speeds,
    Variant,
)

VARIANT = Variant("m", "d", context_tokens=0)
SPEEDS = Speeds(1.0, ((1, 1.0),))


@pytest.mark.parametrize(
    ("base_url", "api", "root"),
    [
        ("http://h:8000", "http://h:8000/v1", "http://h:8000"),
        ("http://h:8000/v1/", "http://h:8000/v1", "http://h:8000"),
        ("https://h/openai/v1", "https://h/openai/v1", "https://h/openai"),
        ("https://h/api/v1beta", "https://h/api/v1beta", "https://h/api"),
    ],
)
def test_urls(base_url: str, api: str, root: str) -> None:
    settings = OpenAiHttpSettings(base_url, VARIANT, SPEEDS)
    assert (settings.api_url, settings.root_url) == (api, root)


@pytest.mark.parametrize("base_url", ["", "h:8000", "ftp://h", "http://", "http://me:pw@h", "http://h?key=1"])
def test_bad_urls_are_refused(base_url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        OpenAiHttpSettings(base_url, VARIANT, SPEEDS)


@pytest.mark.parametrize("key", ["a b", "a\r\nX-Evil: 1", "ключ"])
def test_bad_keys_are_refused_without_showing_them(key: str) -> None:
    with pytest.raises(ValueError) as error:
        OpenAiHttpSettings("http://h", VARIANT, SPEEDS, api_key=key)
    assert key not in str(error.value)


def test_the_key_is_not_in_the_repr() -> None:
    assert "sk-secret" not in repr(OpenAiHttpSettings("http://h", VARIANT, SPEEDS, api_key="sk-secret"))


def test_limits() -> None:
    with pytest.raises(ValueError, match="slots"):
        OpenAiHttpSettings("http://h", VARIANT, SPEEDS, slots=0)
    with pytest.raises(ValueError, match="replay"):
        OpenAiHttpSettings("http://h", VARIANT, SPEEDS, replay_class=ReplayClass.TOKENS)
    assert unnamed_digest("a") == unnamed_digest("a") != unnamed_digest("b")


def test_models_are_parsed() -> None:
    rows = [{"id": "a", "max_model_len": 99}, {"id": "b"}, {"no": "id"}, 5]
    assert parse_models({"data": rows}) == (ListedModel("a", 99), ListedModel("b", 0))
    with pytest.raises(UpstreamFailed):
        parse_models(["a"])


def test_the_model_is_settled(caplog: pytest.LogCaptureFixture) -> None:
    listed = (ListedModel("a", 99), ListedModel("b", 0))
    assert settle_model("", VARIANT, listed) == ("a", Variant("m", "d", context_tokens=99))
    assert settle_model("b", VARIANT, listed) == ("b", Variant("m", "d", context_tokens=4096))
    assert settle_model("a", Variant("m", "d", context_tokens=50), listed)[1].context_tokens == 50
    assert not caplog.records
    assert settle_model("c", VARIANT, listed)[0] == "c"
    assert "does not list" in caplog.text
    with pytest.raises(UpstreamFailed):
        settle_model("", VARIANT, ())


def out(index: int, count: int, text: str, **more: object) -> SequenceOutput:
    return SequenceOutput(AttemptKey("r", 1), index, count, text=text, **more)  # type: ignore[arg-type]


async def test_outputs_of_one_sequence_are_joined() -> None:
    outbox = Outbox()
    stamp = FirstToken(0.0, 1.0, 0, 1, 5)
    finish = Finish(FinishReason.STOP)
    outbox.put(out(0, 1, "a", first_token=stamp))
    outbox.put(out(1, 2, "bc"))
    outbox.put(out(3, 0, "", finish=finish))
    batch = await outbox.take()
    assert batch is not None
    assert batch.outputs == (out(0, 3, "abc", first_token=stamp, finish=finish),)


async def test_take_waits_drop_forgets_and_close_ends() -> None:
    outbox = Outbox()
    taking = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    outbox.put(out(0, 1, "a"))
    outbox.drop(AttemptKey("r", 1))
    await asyncio.sleep(0)
    assert not taking.done()
    outbox.put(out(0, 1, "b"))
    outbox.close()
    batch = await taking
    assert batch is not None
    assert batch.outputs == (out(0, 1, "b"),)
    assert await outbox.take() is None
