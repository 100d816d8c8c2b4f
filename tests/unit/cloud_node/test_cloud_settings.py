from __future__ import annotations

import pytest

from cloud_node.settings import CloudSettings
from serving.engine_settings import build_engine
from serving.engines.openai_http import OpenAiHttpEngine
from serving.settings import SettingsError, load_settings
from serving.settings_docs import describe
from tidegate.routing.domain import Tier


def load(**more: str) -> CloudSettings:
    return load_settings(CloudSettings, None, {f"TIDEGATE_CLOUD__{k}": v for k, v in more.items()})


def test_defaults_stand_in_front_of_a_server() -> None:
    settings = load()
    assert settings.engine.kind == "openai_http"
    assert settings.engine.context_tokens == 0
    assert settings.tier is Tier.CLOUD
    assert settings.admin is None


@pytest.mark.parametrize("kind", ["oracle", "llama_cpp", "llama_server"])
def test_engines_of_its_own_have_a_context(kind: str) -> None:
    assert load(ENGINE__KIND=kind).engine.context_tokens == 2048
    assert load(ENGINE__KIND=kind, ENGINE__CONTEXT_TOKENS="512").engine.context_tokens == 512


@pytest.mark.parametrize(
    "settings",
    [
        {"ENGINE__CONTEXT_TOKENS": "100"},
        {"ENGINE__KIND": "oracle", "ENGINE__CONTEXT_TOKENS": "0"},
        {"ENGINE__KIND": "llama_cpp", "ENGINE__CONTEXT_TOKENS": "0"},
    ],
)
def test_a_context_that_is_too_small_is_refused(settings: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="context_tokens must be at least 256"):
        load(**settings)


def test_the_engine_is_made_from_the_settings() -> None:
    settings = load(ENGINE__MODEL_NAME="m", ENGINE__OPENAI_HTTP__BASE_URL="http://localhost:8000")
    assert isinstance(build_engine(settings.engine), OpenAiHttpEngine)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"ENGINE__MODEL_NAME": "m"}, "base_url"),
        ({"ENGINE__MODEL_NAME": "m", "ENGINE__OPENAI_HTTP__BASE_URL": "localhost:8000"}, "base_url"),
    ],
)
def test_what_is_missing_is_named(settings: dict[str, str], word: str) -> None:
    with pytest.raises(SettingsError, match=word):
        build_engine(load(**settings).engine)


def test_every_key_is_described() -> None:
    keys = {field.key for field in describe(CloudSettings)}
    assert {"engine.kind", "engine.openai_http.base_url", "admin.port", "link.gateways"} <= keys
