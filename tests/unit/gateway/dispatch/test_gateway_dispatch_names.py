"""Names that stand for several models, and copies to shadow models."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from dispatch_rig import NODES, Rig, answer, ask
from gateway_fakes import VARIANT, announcement

from gateway.dispatch import Levels
from gateway.dispatch.caller import Client
from gateway.transport.fleet_view import models_of
from tidegate.routing.domain import Accepted, Finished, NodeLoad
from tidegate.routing.naming import ModelName, ModelNames, Portion

pytestmark = pytest.mark.looptime

OTHER = replace(VARIANT, model="tide-7b", digest="e" * 64, aliases=())
COPIES = Portion("tide-7b", 1.0)
NAMES = ModelNames(
    [ModelName("both", ("tide-7b", "tide-1b"), shadow=COPIES), ModelName("one", ("tide-1b",), shadow=COPIES)]
)


def rig_with(node_id: str = "n3", *, scripts: int = 2) -> Rig:
    """n1 serves tide-1b, the other one tide-7b."""
    rig = Rig(levels=Levels(names=NAMES), n1=[answer() for _ in range(3)], **{node_id: [answer()] * scripts})
    rig.fleet.register(announcement(node_id, variant=OTHER), NODES[node_id], 2)
    rig.fleet.heartbeat(node_id, NodeLoad())
    rig.fleet.rtt(node_id, 1.0)
    return rig


async def test_a_name_falls_back_and_says_so() -> None:
    rig = rig_with()
    opened = (await rig.run(ask(model="both")))[0]
    assert isinstance(opened, Accepted)
    assert (opened.route.model, opened.route.why.count('as "both"')) == ("tide-7b", 1)
    rig.fleet.heartbeat("n3", NodeLoad(ready=False))
    opened = (await rig.run(ask("r2", model="both")))[0]
    assert isinstance(opened, Accepted)
    assert opened.route.model == "tide-1b"
    assert 'fallback 1 of "both"' in opened.route.why


async def test_a_target_that_is_full_is_waited_for_only_so_long() -> None:
    rig = rig_with()
    rig.fleet.heartbeat("n3", NodeLoad(running=4, pending_decode_tokens=400))
    opened = (await rig.run(ask(model="both")))[0]
    assert isinstance(opened, Accepted)
    assert opened.route.model == "tide-1b"
    assert rig.count("tidegate_wait_seconds_sum") <= 2.1  # the patience of a request without a budget


async def test_a_copy_goes_to_the_shadow_and_its_answer_nowhere() -> None:
    rig = rig_with()
    events = await rig.run(ask(model="both", session_id="s"))
    assert isinstance(events[-1], Finished)
    seen = len(events)
    await asyncio.sleep(5.0)
    assert len(events) == seen
    assert rig.tried == ["n3", "n3"]
    copy = rig.nodes.works[1][1]
    assert copy.input == rig.nodes.works[0][1].input
    assert (copy.priority, copy.key.request_id.endswith(".s")) == (-10, True)
    assert rig.count("tidegate_shadows_total", outcome="answered") == 1.0
    assert rig.count("tidegate_requests_total", tier="cloud", code="ok", reason="") == 1.0


async def test_no_copy_leaves_the_data_class_or_takes_anybodys_place() -> None:
    rig = rig_with()  # n3 is in the cloud
    await rig.run(ask(model="both", data_class="restricted"))
    await asyncio.sleep(5.0)
    assert rig.tried == ["n1"]
    near = rig_with("n2")  # the control: the same on the edge is copied
    await near.run(ask(model="both", data_class="restricted"))
    await asyncio.sleep(5.0)
    assert near.tried == ["n2", "n2"]
    full = rig_with("n2")
    full.fleet.heartbeat("n2", NodeLoad(running=4))
    await full.run(ask(model="one"))
    await asyncio.sleep(5.0)
    assert full.tried == ["n1"]
    assert full.count("tidegate_shadows_total", outcome="skipped") == 1.0


async def test_names_are_listed_beside_models() -> None:
    rig = rig_with()
    listed = {m.name: m for m in models_of(rig.fleet.snapshot(), "default", NAMES)}
    assert set(listed) == {"tide-1b", "tide-7b", "both", "one"}
    assert {v.model for v in listed["both"].variants} == {"tide-1b", "tide-7b"}
    assert listed["both"].ready_nodes == 1
    assert [m.name for m in models_of(rig.fleet.snapshot(), "default")] == ["tide-1b", "tide-7b"]


async def test_a_sampled_decision_is_logged_with_its_candidates_and_nothing_of_the_prompt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = rig_with()
    caplog.set_level("INFO", "gateway.decisions")
    await rig.run(ask(model="one"))
    assert not [r for r in caplog.records if r.name == "gateway.decisions"]  # the default: none
    rig.dispatcher._decider._log_share = 0.5
    await rig.run(ask("r2", model="one"))
    (line,) = [r.__dict__ for r in caplog.records if r.name == "gateway.decisions"]
    assert (line["request_id"], line["named"], line["filtered"]) == ("r2", '"one"', {"model": 1})
    assert [c["node"] for c in line["candidates"]] == ["name-n1"]
    assert "tide?" not in json.dumps({k: str(v) for k, v in line.items()})


async def test_a_session_keeps_its_canary_and_each_of_its_turns_is_drawn_for_a_copy() -> None:
    half = Portion("tide-7b", 0.5)
    names = ModelNames([ModelName("trial", ("tide-1b",), canary=half, shadow=half)])
    rig = Rig(levels=Levels(names=names))
    intake, sessions = rig.intake, [f"s{number}" for number in range(12)]
    turns = {
        session: [
            intake.begin(ask(f"{session}.r{n}", model="trial", session_id=session), Client()).resolved
            for n in range(12)
        ]
        for session in sessions
    }
    sides = [{turn.is_canary for turn in session} for session in turns.values()]
    assert all(len(side) == 1 for side in sides)
    assert {True} in sides
    assert {False} in sides
    assert all(len({turn.shadow for turn in session}) == 2 for session in turns.values())
