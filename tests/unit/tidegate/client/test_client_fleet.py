"""Nodes, models, decisions and the watch, with content."""

from __future__ import annotations

import asyncio

import grpc
import pytest

import tidegate
from tidegate.gateway.v1 import gateway_pb2 as pb
from tidegate.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from tidegate.routing.domain import Speeds, Variant
from tidegate.testing import FakeGateway, default_route
from tidegate.wire.channels import open_channel

VARIANT = Variant(model="m", digest="d", perplexity=9.5)
NODE = tidegate.NodeInfo(
    node_id="n1",
    name="kitchen",
    tier=tidegate.Tier.EDGE,
    region="home",
    health=tidegate.Health.READY,
    variants=(VARIANT,),
    slots=2,
    running=1,
    queued=0,
    rtt_ms=1.5,
    speeds=Speeds(100.0, ((1, 20.0),)),
)


async def test_lists_and_decisions(gateway: FakeGateway, client: tidegate.Client) -> None:
    gateway.nodes = (NODE,)
    gateway.models = (tidegate.ModelInfo("m", ("alias",), (VARIANT,), 1),)
    assert await client.nodes() == (NODE,)
    assert await client.models() == gateway.models
    decision = await client.explain("hi", budget=tidegate.Budget(ttft_ms=5))
    assert decision.route == await client.route("hi", budget=tidegate.Budget(ttft_ms=5)) == default_route()
    refused = tidegate.Decision(
        None, tidegate.Explanation(filtered={"health": 2}), refusal="no node is ready"
    )
    gateway.decision = refused
    assert await client.explain(raw_prompt="hi") == refused
    with pytest.raises(tidegate.BudgetUnmeetable, match="no node is ready"):
        await client.route("hi")
    for ask in (client.explain, client.route):
        with pytest.raises(tidegate.InvalidRequest):
            await ask("hi", placement="moon")


async def test_the_watch_tells_of_changes_only(gateway: FakeGateway, client: tidegate.Client) -> None:
    async with asyncio.timeout(5):
        watch = client.watch_fleet()
        assert await anext(watch) == ()
        pending = asyncio.create_task(anext(watch))
        await client.nodes()
        assert not pending.done()
        gateway.set_nodes([NODE])
        assert await pending == (NODE,)
        await watch.aclose()
        with pytest.raises(tidegate.Cancelled):
            await anext(watch)


async def test_an_unreadable_node_is_an_internal_error() -> None:
    class Odd(FakeGateway):
        async def ListNodes(self, request: pb.ListNodesRequest, context: object) -> pb.ListNodesResponse:
            return pb.ListNodesResponse(nodes=[pb.Node(node_id="n")])

    async with Odd() as odd, tidegate.Client(odd.address) as other:
        with pytest.raises(tidegate.InternalError, match=r"node\.tier"):
            await other.nodes()


async def test_the_fake_answers_reserved_calls_and_bad_requests(gateway: FakeGateway) -> None:
    channel = open_channel(gateway.address)
    stub = GatewayServiceStub(channel)
    calls = [
        (stub.Route(pb.RouteRequest()), grpc.StatusCode.INVALID_ARGUMENT),
        (stub.Explain(pb.ExplainRequest()), grpc.StatusCode.INVALID_ARGUMENT),
    ]
    for call, expected in calls:
        with pytest.raises(grpc.RpcError) as caught:
            await call  # type: ignore[misc]
        assert caught.value.code() is expected
    streams = [
        (stub.Resume(pb.ResumeRequest()), grpc.StatusCode.UNIMPLEMENTED),
        (stub.Generate(pb.GenerateRequest()), grpc.StatusCode.INVALID_ARGUMENT),
    ]
    for stream, expected in streams:
        with pytest.raises(grpc.RpcError) as caught:
            await stream.read()  # type: ignore[attr-defined]
        assert caught.value.code() is expected
    await channel.close(None)


async def test_texts_are_embedded_in_order(gateway: FakeGateway, client: tidegate.Client) -> None:
    found = await client.embed(["tide", "gates"], model="m", data_class="restricted", placement="edge")
    assert found == tidegate.Embedded(((4.0, 0.0), (5.0, 1.0)), tidegate.Usage(9))
    (asked,) = gateway.requests
    assert (asked.embed, asked.model, asked.data_class) == (("tide", "gates"), "m", "restricted")
    for texts in ([], ["a"] * 129, ["a", ""], "tide"):
        with pytest.raises(tidegate.InvalidRequest):
            await client.embed(texts)
    assert len(gateway.requests) == 1
