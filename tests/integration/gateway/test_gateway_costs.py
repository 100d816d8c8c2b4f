"""What nodes report of their electricity reaches the decision and its reasons."""

from __future__ import annotations

from pathlib import Path

from gateway_rig import Rig, question, until

from tidegate.gateway.v1 import gateway_pb2 as pb
from tidegate.routing.domain import Accepted, Power
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
        nodes = {
            n.node_id: n
            for n in map(fleet.decode_node, (await rig.stub.ListNodes(pb.ListNodesRequest())).nodes)
        }
        assert nodes["n2"].power == powers["n2"]
        assert fleet.decode_decision(await rig.stub.Explain(request)).explanation.filtered == {"battery": 1}
