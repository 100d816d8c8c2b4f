"""The daemon's settings: defaults a device can start with, and problems told in one line."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from edge_node.settings import DEFAULT_PORT, EdgeSettings
from serving.engine_settings import build_engine
from serving.engines.oracle import OracleEngine
from serving.node_program import check_links
from serving.settings import SettingsError, load_settings
from serving.startup import ProgramError

LLAMA = {"TIDEGATE_EDGE__ENGINE__MODEL": "/nowhere/model.gguf"}


def load(environ: dict[str, str]) -> EdgeSettings:
    return load_settings(EdgeSettings, None, environ)


def test_defaults_are_local_and_bundled() -> None:
    settings = load({})
    assert (settings.local_api.host, settings.local_api.port) == ("127.0.0.1", DEFAULT_PORT)
    assert (settings.engine.kind, settings.engine.model) == ("llama_cpp", "bundled")
    assert settings.link.gateways == ()
    assert settings.shown_name


def test_state_folder_follows_xdg_unless_set() -> None:
    assert load({}).state_folder({"XDG_STATE_HOME": "/s"}) == Path("/s/tidegate/edge")
    assert load({"TIDEGATE_EDGE__STATE_DIR": "/own"}).state_folder({}) == Path("/own")


@pytest.mark.parametrize("address", ["gateway", ":50052", "gateway:", "gateway:x", "gateway:70000"])
def test_gateway_addresses_are_host_and_port(address: str) -> None:
    with pytest.raises(SettingsError, match=r"link\.gateways: each gateway must be written HOST:PORT"):
        load({"TIDEGATE_EDGE__LINK__GATEWAYS": f"good.example:50052,{address}"})


def test_plain_links_stay_on_this_machine() -> None:
    here = load({"TIDEGATE_EDGE__LINK__GATEWAYS": "127.0.0.1:50052,[::1]:50052,localhost:1"})
    check_links(here.link, insecure=False)
    away = load({"TIDEGATE_EDGE__LINK__GATEWAYS": "127.0.0.1:50052,gateway.example:50052"})
    with pytest.raises(ProgramError, match=r"refusing a plain link to gateway\.example:50052"):
        check_links(away.link, insecure=False)
    check_links(away.link, insecure=True)
    secured = load({**_gateways("gateway.example:50052"), "TIDEGATE_EDGE__LINK__TLS__CA_FILE": "/ca.pem"})
    check_links(secured.link, insecure=False)


def _gateways(text: str) -> dict[str, str]:
    return {"TIDEGATE_EDGE__LINK__GATEWAYS": text}


def test_missing_model_file_says_what_to_do() -> None:
    with pytest.raises(SettingsError, match=r"engine\.model: there is no file /nowhere/model\.gguf: set"):
        build_engine(load(LLAMA).engine)


def test_openai_http_needs_an_address() -> None:
    kind = {"TIDEGATE_EDGE__ENGINE__KIND": "openai_http"}
    with pytest.raises(SettingsError, match=r"engine\.openai_http\.base_url: must be set"):
        build_engine(load(kind).engine)
    address = {"TIDEGATE_EDGE__ENGINE__OPENAI_HTTP__BASE_URL": "http://localhost:1/v1"}
    assert build_engine(load(kind | address).engine) is not None  # the server says what it serves
    bad = {
        "TIDEGATE_EDGE__ENGINE__OPENAI_HTTP__BASE_URL": "ftp://x",
        "TIDEGATE_EDGE__ENGINE__MODEL_NAME": "m",
    }
    with pytest.raises(SettingsError, match=r"engine\.openai_http: base_url must be an http"):
        build_engine(load(kind | bad).engine)


def test_llama_cpp_settings_reach_the_engine(tmp_path: Path) -> None:
    model = tmp_path / "Tiny-Q4.gguf"
    model.write_bytes(b"GGUF")
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}")
    settings = load(
        {
            "TIDEGATE_EDGE__ENGINE__MODEL": str(model),
            "TIDEGATE_EDGE__ENGINE__SLOTS": "2",
            "TIDEGATE_EDGE__ENGINE__LLAMA_CPP__THREADS": "3",
            "TIDEGATE_EDGE__ENGINE__LLAMA_CPP__CHAT_TEMPLATE_FILE": str(template),
        }
    )
    assert type(build_engine(settings.engine)).__name__ == "LlamaCppEngine"
    template.unlink()
    with pytest.raises(SettingsError, match="chat_template_file: cannot read"):
        build_engine(settings.engine)


def test_a_pinned_prompt_is_a_text_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "rules.txt").write_text("Be brief.\n")
    config = tmp_path / "edge.toml"
    for line, problem in (
        (f'file = "{tmp_path}/rules.txt"', ""),
        (f'file = "{tmp_path}/none.txt"', "pinned_prompts.file: cannot read"),
        ('text = "a"\nfile = "b"', "either a text or a file"),
        ('tenants = ["default"]', "either a text or a file"),
    ):
        config.write_text(f"[[engine.llama_cpp.pinned_prompts]]\n{line}\n")
        settings = load_settings(EdgeSettings, config, {})
        with pytest.raises(SettingsError, match=problem) if problem else contextlib.nullcontext():
            build_engine(settings.engine)


def test_oracle_from_the_environment() -> None:
    environ = {
        "TIDEGATE_EDGE__ENGINE__KIND": "oracle",
        "TIDEGATE_EDGE__ENGINE__ORACLE__DECODE": "[[1, 100], [8, 50]]",
        "TIDEGATE_EDGE__ENGINE__ORACLE__NATURAL_LENGTH": "3, 9",
    }
    settings = load(environ)
    assert settings.engine.oracle.decode == ((1, 100.0), (8, 50.0))
    assert settings.engine.oracle.natural_length == (3, 9)
    assert isinstance(build_engine(settings.engine), OracleEngine)
