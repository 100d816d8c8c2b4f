"""What a caller writes becomes the right request, or an error before anything is sent."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import tidegate
from tidegate.client.endpoints import Endpoints, ForkGuard
from tidegate.client.request import build_request

USER = tidegate.Role.USER


def test_a_string_is_one_users_turn() -> None:
    request, message = build_request("hi", {})
    assert request.messages == (tidegate.Message(USER, "hi"),)
    assert message.chat.messages[0].content == "hi"
    assert request.model == "auto"
    assert len(request.request_id) == 32


def test_messages_of_both_kinds() -> None:
    request, _ = build_request(
        [{"role": "system", "content": "brief"}, tidegate.Message(USER, "hi", name="ann")], {}
    )
    assert request.messages == (
        tidegate.Message(tidegate.Role.SYSTEM, "brief"),
        tidegate.Message(USER, "hi", name="ann"),
    )


def test_every_option_arrives() -> None:
    budget = tidegate.Budget(ttft_ms=1, target_share=0.5)
    request, _ = build_request(
        None,
        {
            "raw_prompt": "once",
            "model": "m",
            "max_tokens": 3,
            "stop": "end",
            "sampling": tidegate.Sampling(temperature=0.5, top_k=4),
            "temperature": 0.0,
            "seed": 7,
            "budget": budget,
            "min_p_good": 0.25,
            "placement": "edge",
            "data_class": "restricted",
            "session_id": "s",
            "priority": 2,
            "on_miss": tidegate.OnMiss.REJECT,
            "early_accept": True,
            "explain": True,
            "request_id": "mine",
        },
    )
    assert (request.prompt, request.messages, request.stop) == ("once", (), ("end",))
    assert request.sampling == tidegate.Sampling(temperature=0.0, top_k=4, seed=7)
    assert (request.placement, request.on_miss) == (tidegate.Placement.EDGE, tidegate.OnMiss.REJECT)
    assert (request.budget, request.min_p_good, request.priority) == (budget, 0.25, 2)
    assert (request.early_accept, request.explain, request.request_id) == (True, True, "mine")
    assert (request.data_class, request.session_id, request.max_tokens) == ("restricted", "s", 3)


@pytest.mark.parametrize(
    ("prompt", "options", "param"),
    [
        (None, {}, "input"),
        ("", {}, "prompt"),
        ([], {}, "input"),
        ("hi", {"raw_prompt": "x"}, "raw_prompt"),
        ("hi\ud800", {}, "messages[0].content"),
        ([{"role": "boss", "content": "x"}], {}, "messages[0].role"),
        ([{"role": "user"}], {}, "messages[0].content"),
        ([{"role": "user", "content": "x", "mood": "bad"}], {}, "messages[0]"),
        (["hi"], {}, "messages[0]"),
        ("hi", {"placement": "moon"}, "placement"),
        ("hi", {"on_miss": "shrug"}, "on_miss"),
        ("hi", {"temperature": 9.0}, "sampling.temperature"),
        ("hi", {"temperature": "hot"}, ""),
        ("hi", {"max_tokens": "many"}, ""),
        ("hi", {"max_tokens": -1}, "max_tokens"),
        ("hi", {"stop": [""]}, "stop[0]"),
        ("hi", {"budget": tidegate.Budget(ttft_ms=-1)}, "budget.ttft_ms"),
        ("hi", {"request_id": "with space"}, "request_id"),
        ("hi", {"deadline_s": 0.0}, "deadline_s"),
        ("hi", {"deadline_s": float("inf")}, "deadline_s"),
    ],
)
def test_bad_input_fails_before_the_wire(prompt: Any, options: Any, param: str) -> None:
    client, sync = tidegate.Client("127.0.0.1:1"), tidegate.SyncClient("127.0.0.1:1")
    for generate in (client.generate, sync.generate):
        with pytest.raises(tidegate.InvalidRequest) as caught:
            generate(prompt, **options)
        assert caught.value.param == param


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="max_tokenz"):
        tidegate.Client("127.0.0.1:1").generate("hi", max_tokenz=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("addresses", [[], "", ["a:1", " "]])
def test_addresses_are_needed(addresses: Any) -> None:
    with pytest.raises(ValueError, match="address"):
        tidegate.Client(addresses)


def test_endpoints_move_on_once_per_failure() -> None:
    endpoints = Endpoints(["a", "b", "a", "c"], lambda: 0.5)
    assert endpoints.addresses == ("a", "b", "c")
    assert endpoints.current == "b"
    endpoints.failed("b")
    endpoints.failed("b")
    assert endpoints.current == "c"
    endpoints.failed("c")
    assert endpoints.current == "a"


def test_a_used_client_is_refused_in_a_forked_child(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = ForkGuard()
    guard.check()
    guard.check()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(RuntimeError, match="fork"):
        guard.check()


def test_importing_tidegate_or_its_routing_loads_no_grpc() -> None:
    code = (
        "import sys, tidegate, tidegate.routing.domain\n"
        "heavy = [m for m in sys.modules if m.split('.')[0] in ('grpc', 'google')]\n"
        "assert not heavy, heavy\n"
        "tidegate.Client\n"
        "assert 'grpc' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, start_new_session=True)


def test_public_names_exist_and_the_version_is_the_packages() -> None:
    for name in tidegate.__all__:
        assert getattr(tidegate, name) is not None
    assert set(tidegate.__all__) <= set(dir(tidegate))
    with pytest.raises(AttributeError):
        tidegate.nothing  # noqa: B018
    project = Path(__file__).parents[4] / "sdk" / "pyproject.toml"
    assert tidegate.__version__ == tomllib.loads(project.read_text())["project"]["version"]
