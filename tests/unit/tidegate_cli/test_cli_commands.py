"""Commands as processes against a gateway that plays scripts, or against none."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cli_helpers import tidegate_cli

import tidegate
from tidegate.routing.domain import Candidate, Code, Explanation, ServeError, Speeds, Variant
from tidegate.testing import Fail, FakeGateway, answer, default_route
from tidegate.wire.fleet import Decision, ModelInfo, NodeInfo

VARIANT = Variant(model="tiny", digest="sha256:" + "a" * 64, quantization="Q4_0", perplexity=13.8)
NODE = NodeInfo(
    node_id="0123456789abcdef",
    name="edge-a",
    tier=tidegate.Tier.EDGE,
    region="here",
    health=tidegate.Health.READY,
    variants=(VARIANT,),
    slots=4,
    running=1,
    queued=2,
    rtt_ms=3.4,
    speeds=Speeds(600.0, ((1, 60.0),)),
)
ROUTE = dataclasses.replace(default_route(node_id="edge-a"), p_good=1.0)


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    models = [ModelInfo("tiny", ("small",), (VARIANT,), ready_nodes=2)]
    proven = replace(ROUTE, node_name="edge-b", certified=True)
    candidates = (Candidate(ROUTE, True, 0.5), Candidate(proven, True, 0.5))
    explanation = Explanation(candidates=candidates, filtered={"health": 1})
    decision = Decision(route=ROUTE, explanation=explanation)
    async with FakeGateway(nodes=[NODE], models=models, decision=decision) as server:
        yield server


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that refuses and that nobody else can take."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{sock.getsockname()[1]}"


async def test_nodes(gateway: FakeGateway) -> None:
    ran = await tidegate_cli("nodes", "--gateway", gateway.address)
    assert (ran.code, ran.err) == (0, "")
    assert re.search(r"^edge-a +edge +ready +tiny Q4_0 +1/4\+2 +3 ms +600/60 +0123456789ab$", ran.out, re.M)
    ran = await tidegate_cli("nodes", "--json", "--gateway", gateway.address)
    (node,) = json.loads(ran.out)
    assert (node["name"], node["tier"], node["health"], node["queued"]) == ("edge-a", "edge", "ready", 2)


async def test_nodes_tell_of_their_electricity_where_one_does(gateway: FakeGateway) -> None:
    power = tidegate.Power(on_battery=True, battery_share=0.63, draw_w=7.5, metered=True)
    gateway.set_nodes([replace(NODE, power=power), replace(NODE, name="edge-b", wake_ms=3200.0)])
    ran = await tidegate_cli("nodes", "--gateway", gateway.address)
    assert re.search(r"^edge-a .* 600/60 +battery 63 %, 7\.5 W, metered +0123456789ab$", ran.out, re.M)
    assert re.search(
        r"^edge-b .* ready \(asleep, loads in 3\.2 s\) .* 600/60 +- +0123456789ab$", ran.out, re.M
    )


async def test_nodes_say_why_an_engine_takes_no_work(gateway: FakeGateway) -> None:
    gateway.set_nodes([replace(NODE, trouble="quarantine: it ended 5 times"), replace(NODE, name="edge-b")])
    ran = await tidegate_cli("nodes", "--gateway", gateway.address)
    assert ran.out.splitlines()[-1] == "edge-a: quarantine: it ended 5 times"


async def test_models(gateway: FakeGateway) -> None:
    ran = await tidegate_cli("models", "--gateway", gateway.address)
    assert re.search(r"^tiny +Q4_0 +13\.80 +- +2048 +2 +sha256:aaaaaaaaaaaa$", ran.out, re.M)
    (model,) = json.loads((await tidegate_cli("models", "--json", "--gateway", gateway.address)).out)
    assert model["aliases"] == ["small"]
    assert model["variants"][0]["digest"] == VARIANT.digest


async def test_a_models_ready_nodes_are_told_once() -> None:
    """The gateway counts them per model: beside each variant they would look like its own."""
    other = replace(VARIANT, digest="sha256:" + "b" * 64)
    async with FakeGateway(models=[ModelInfo("tiny", (), (VARIANT, other), ready_nodes=2)]) as server:
        ran = await tidegate_cli("models", "--gateway", server.address)
    assert re.search(r" 2048 +2 +sha256:a+$", ran.out, re.M)
    assert re.search(r" 2048 +sha256:b+$", ran.out, re.M)


async def test_explain(gateway: FakeGateway) -> None:
    ran = await tidegate_cli("explain", "where to?", "--ttft-ms", "300", "--gateway", gateway.address)
    assert ran.out.splitlines()[0] == ROUTE.why
    assert "left out: 1 by health" in ran.out
    assert re.search(r"^edge-a .* 1\.00 +not certified ", ran.out, re.M)
    assert re.search(r"^edge-b .* 1\.00 +certified ", ran.out, re.M)
    value = json.loads((await tidegate_cli("explain", "x", "--json", "--gateway", gateway.address)).out)
    assert value["route"]["node_name"] == "edge-a"
    assert value["explanation"]["filtered"] == {"health": 1}


async def test_explain_without_the_admin_scope_tells_where_it_would_go(gateway: FakeGateway) -> None:
    for flag in ((), ("--json",)):
        gateway.fail_next(Fail(ServeError(Code.PERMISSION_DENIED, "admin only")))
        ran = await tidegate_cli("explain", "x", *flag, "--gateway", gateway.address)
        assert ran.code == 0, ran.err
        if flag:
            assert json.loads(ran.out)["node_name"] == "edge-a"
        else:
            assert ran.out.startswith(ROUTE.why)
            assert "need a key with the admin scope" in ran.out


async def test_explain_tells_of_a_refusal(gateway: FakeGateway) -> None:
    gateway.decision = Decision(route=None, explanation=Explanation(), refusal="no node may have it")
    ran = await tidegate_cli("explain", "x", "--data-class", "restricted", "--gateway", gateway.address)
    assert ran.out.startswith("refused: no node may have it\n")


async def test_chat_keeps_the_conversation_and_says_who_answered(gateway: FakeGateway) -> None:
    gateway.script(*answer("Hel", "lo", route=ROUTE, budget=tidegate.BudgetOutcome.MET))
    gateway.script(*answer("Again", route=ROUTE))
    args = ("chat", "--gateway", gateway.address, "--system", "be brief", "--ttft-ms", "300")
    ran = await tidegate_cli(*args, stdin="hi\n\nmore\n")
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0] == "Hello"
    assert lines[1].startswith("[edge-a (edge, fake), TTFT 2 ms")
    assert lines[1].endswith("budget met]")
    assert lines[2] == "Again"
    first, second = gateway.requests
    assert [m.content for m in first.messages] == ["be brief", "hi"]
    assert [m.content for m in second.messages] == ["be brief", "hi", "Hello", "more"]
    assert first.session_id == second.session_id != ""
    assert first.budget.ttft_ms == 300


async def test_chat_from_a_pipe_fails_where_the_answer_fails(gateway: FakeGateway) -> None:
    gateway.fail_next(Fail(ServeError(Code.NOT_FOUND, "no model named x", reason="MODEL_UNKNOWN")))
    ran = await tidegate_cli("chat", "--model", "x", "--gateway", gateway.address, stdin="hi\n")
    assert (ran.code, ran.err) == (1, "tidegate: no model named x\n")


async def test_api_key_comes_from_the_named_variable() -> None:
    async with FakeGateway(api_key="k3y", nodes=[NODE]) as gateway:
        args = ("nodes", "--gateway", gateway.address, "--api-key-env", "MY_KEY")
        assert (await tidegate_cli(*args, environ={"MY_KEY": "k3y"})).code == 0
        refused = await tidegate_cli(*args, environ={"MY_KEY": "other"})
        assert (refused.code, refused.err) == (1, "tidegate: unknown API key\n")
        odd = await tidegate_cli(*args, environ={"MY_KEY": "not one word"})
        assert (odd.code, odd.err.count("\n")) == (1, 1)
        assert "not one word" not in odd.err


async def test_address_comes_from_the_environment(gateway: FakeGateway) -> None:
    ran = await tidegate_cli("nodes", "--json", environ={"TIDEGATE_ADDRESS": gateway.address})
    assert json.loads(ran.out)[0]["name"] == "edge-a"


@pytest.mark.parametrize("command", [("nodes",), ("models", "--json"), ("explain", "x"), ("chat",)])
async def test_no_gateway_is_one_line_that_says_how_to_start_one(
    nobody: str, command: tuple[str, ...]
) -> None:
    ran = await tidegate_cli(*command, "--gateway", nobody, stdin="hi\n")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(f"tidegate: no gateway answers at {nobody}: start one with `tidegate up`")
    assert ran.err.count("\n") == 1


async def test_a_gateway_that_refuses_is_not_called_missing(gateway: FakeGateway) -> None:
    failure = Fail(ServeError(Code.UNAVAILABLE, "no node is linked", reason="NO_NODE"))
    gateway.fail_next(*[failure] * 6)
    ran = await tidegate_cli("explain", "x", "--gateway", gateway.address)
    assert (ran.code, ran.err) == (1, "tidegate: no node is linked\n")


async def test_missing_ca_is_one_line(tmp_path: Path) -> None:
    ran = await tidegate_cli("nodes", "--ca", str(tmp_path / "ca.pem"))
    assert (ran.code, ran.err) == (1, f"tidegate: cannot read {tmp_path}/ca.pem: No such file or directory\n")


async def test_budget_that_is_no_budget_is_a_wrong_argument(nobody: str) -> None:
    ran = await tidegate_cli("explain", "x", "--ttft-ms", "-3", "--gateway", nobody)
    assert (ran.code, ran.err) == (2, "tidegate: budget.ttft_ms: must be above 0 milliseconds\n")


async def test_version() -> None:
    ran = await tidegate_cli("version", "--json")
    assert json.loads(ran.out)["tidegate"] == tidegate.__version__
    assert (await tidegate_cli("version")).out.startswith(f"tidegate {tidegate.__version__}\npython 3.")


async def test_unreadable_prompts_and_models_are_one_line(tmp_path: Path) -> None:
    ran = await tidegate_cli("demo", "--prompts", str(tmp_path / "none"), "--engine", "oracle")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"tidegate: cannot read the prompts in {tmp_path}/none: No such file or directory\n"
    empty = tmp_path / "empty"
    empty.mkdir()
    # A file where the folder for models should be.
    (tmp_path / "tidegate").touch()
    ran = await tidegate_cli("demo", "--free-ports", environ={"XDG_CACHE_HOME": str(tmp_path)})
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    assert ran.err.startswith("tidegate: preparing the models failed: cannot prepare models in ")
