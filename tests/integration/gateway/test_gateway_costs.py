"""What nodes report of their electricity reaches the decision and its reasons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gateway_rig
import pytest
from gateway_rig import Rig, question, until

from serving.engines.base import EngineLoad
from serving.engines.oracle import OracleEngine
from tidegate.gateway.v1 import gateway_pb2 as pb
from tidegate.routing.domain import Accepted, Budget, Power
from tidegate.wire import codec, fleet


async def test_a_report_decides_and_is_told(tmp_path: Path) -> None:
    (tmp_path / "join").write_text("join-me\n")
    table = [
        {"tier": "edge", "join_token": {"file": tmp_path / "join"}, "cost_per_wh": 0.3, "battery_floor": 0.2}
    ]
    async with Rig(nodes=table) as rig:
        powers = {"n1": Power(work_w=60.0), "n2": Power(work_w=6.0)}
        for name in powers:
            await rig.add_node(name, join_token="join-me", power=lambda name=name: powers[name])

        async def first() -> str:
            (accepted, *_) = await rig.ask(question("r1", max_tokens=4))
            assert isinstance(accepted, Accepted)
            return accepted.route.node_id

        def told(node_id: str) -> Power | None:
            return rig.app.fleet.snapshot().by_id[node_id].load.power

        assert [await first() for _ in range(6)] == ["n2"] * 6
        request = pb.ExplainRequest(request=codec.encode_generate_request(question("r2")))
        best, other = fleet.decode_decision(await rig.stub.Explain(request)).explanation.candidates
        assert 0.0 < best.energy_per_mtoken < other.energy_per_mtoken
        assert best.cost_per_mtoken == best.energy_per_mtoken
        powers["n2"] = Power(on_battery=True, battery_share=0.1, work_w=6.0)
        await until(lambda: told("n2") == powers["n2"])
        assert [await first() for _ in range(3)] == ["n1"] * 3
        assert {n.node_id: n.power for n in await nodes_of(rig)} == powers
        assert fleet.decode_decision(await rig.stub.Explain(request)).explanation.filtered == {"battery": 1}


class Sleepy(OracleEngine):
    """Says that its model is not loaded."""

    def load(self) -> EngineLoad:
        return replace(super().load(), wake_ms=4000.0)


async def test_a_sleeping_node_is_a_candidate_with_the_time_it_takes_to_wake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = []
    for name, cost in (("cheap", 0.0), ("dear", 1.0)):
        (tmp_path / name).write_text(f"join-{name}\n")
        table.append({"tier": "edge", "join_token": {"file": tmp_path / name}, "cost_per_mtoken": cost})
    async with Rig(nodes=table) as rig:
        await rig.add_node("n2", join_token="join-dear")
        monkeypatch.setattr(gateway_rig, "OracleEngine", Sleepy)
        await rig.add_node("n1", join_token="join-cheap")
        (listed,) = [n for n in await nodes_of(rig) if n.wake_ms > 0]
        assert (listed.node_id, listed.wake_ms) == ("n1", 4000.0)
        for budget, expected in ((Budget(ttft_ms=1000.0), "n2"), (Budget(ttft_ms=60_000.0), "n1")):
            (accepted, *_) = await rig.ask(question("r1", max_tokens=4, budget=budget))
            assert isinstance(accepted, Accepted)
            assert accepted.route.node_id == expected
        assert accepted.route.predicted_ttft_ms > 4000.0


async def nodes_of(rig: Rig) -> list[fleet.NodeInfo]:
    return [fleet.decode_node(n) for n in (await rig.stub.ListNodes(pb.ListNodesRequest())).nodes]
