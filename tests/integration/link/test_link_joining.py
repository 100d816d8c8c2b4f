"""Who may link, as what, and which of two links of one node counts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from gateway_rig import Rig, expected_text, question, start_node, text_of, until
from raw_node import RawNode, ending, register

from serving.identity import NodeIdentity, load_identity
from tidegate.node.v1 import node_pb2
from tidegate.routing.domain import Health, Tier

TOKEN = "join-me-7f3a"


@pytest.fixture
def known(tmp_path: Path) -> Iterator[NodeIdentity]:
    """The key of a node that has a row of its own."""
    identity = load_identity(tmp_path / "state")
    yield identity
    identity.close()


@pytest.fixture
def operator(tmp_path: Path, known: NodeIdentity) -> dict[str, Any]:
    """Nodes with the token are cloud nodes; one of them is known by its id and is not."""
    (tmp_path / "token").write_text(TOKEN + "\n")
    return {
        "nodes": [
            {
                "join_token": {"file": tmp_path / "token"},
                "tier": "cloud",
                "region": "eu",
                "cost_per_mtoken": 3.0,
            },
            {"node_ids": [known.node_id], "tier": "edge", "region": "home", "trust": "low"},
        ]
    }


async def test_the_operators_table_says_what_a_node_is(operator: dict[str, Any], known: NodeIdentity) -> None:
    async with Rig(**operator) as rig:
        await rig.add_node("n1", join_token=TOKEN)
        await rig.add_node(known.node_id, join_token=TOKEN, prove=known.prove)
        nodes = rig.app.fleet.snapshot().by_id
        assert (nodes["n1"].binding.tier, nodes["n1"].binding.region) == (Tier.CLOUD, "eu")
        assert nodes["n1"].binding.cost_per_mtoken == 3.0
        own = nodes[known.node_id].binding
        assert (own.tier, own.trust) == (Tier.EDGE, "low")


async def test_an_id_that_is_only_claimed_gets_the_tokens_row(
    operator: dict[str, Any], known: NodeIdentity
) -> None:
    async with Rig(**operator) as rig:
        await rig.add_node(known.node_id, join_token=TOKEN)
        assert rig.app.fleet.snapshot().by_id[known.node_id].binding.tier is Tier.CLOUD


async def test_nobody_takes_the_place_of_a_node_that_proved_its_id(
    operator: dict[str, Any], known: NodeIdentity, tmp_path: Path
) -> None:
    other = load_identity(tmp_path / "other")
    async with Rig(**operator) as rig:
        node = await rig.add_node(known.node_id, join_token=TOKEN, prove=known.prove)
        for prove in (None, other.prove):
            thief = await start_node(known.node_id, rig.link_address, join_token=TOKEN, prove=prove)
            rig.nodes.append(thief)
            await asyncio.sleep(0.3)
            assert not thief.link.connected
            assert node.link.connected
        assert rig.app.fleet.snapshot().by_id[known.node_id].binding.tier is Tier.EDGE
    other.close()


async def test_the_owner_of_an_id_takes_it_back_from_who_only_claimed_it(
    operator: dict[str, Any], known: NodeIdentity
) -> None:
    async with Rig(**operator) as rig:
        thief = await rig.add_node(known.node_id, join_token=TOKEN)
        assert thief.link.connected
        owner = await start_node(known.node_id, rig.link_address, join_token=TOKEN, prove=known.prove)
        rig.nodes.append(owner)
        await until(lambda: owner.link.connected, what="the owner being linked")
        assert rig.app.fleet.snapshot().by_id[known.node_id].binding.tier is Tier.EDGE


@pytest.mark.parametrize("token", ["", "wrong"])
async def test_a_wrong_token_is_refused_with_a_clear_word_on_both_sides(
    operator: dict[str, Any], token: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with Rig(**operator) as rig:
        node = await start_node("n1", rig.link_address, join_token=token)
        rig.nodes.append(node)
        lost = "tidegate.link.client"
        await until(lambda: any(r.name == lost for r in caplog.records), what="the node's log line")
        assert not node.link.connected
        assert rig.health("n1") is None
        events = {"event": "refused"}
        assert rig.app.metrics.registry.get_sample_value("tidegate_link_events_total", events)
    said = next(r for r in caplog.records if r.name == lost)
    assert "UNAUTHENTICATED" in said.reason  # type: ignore[attr-defined]
    assert "join token missing or unknown" in said.reason  # type: ignore[attr-defined]
    everything = " ".join(str(vars(r)) for r in caplog.records)
    assert TOKEN not in everything
    assert "node refused" in everything


async def test_a_newer_link_of_a_node_replaces_the_older_one(rig: Rig) -> None:
    async with RawNode(rig.link_address) as old, RawNode(rig.link_address) as new:
        await old.join(register(link_epoch=5))
        await old.be_ready()
        await rig.until_health("raw", Health.READY)
        await new.join(register(link_epoch=6))
        _, why = await ending(old.control)
        assert "replaced by a newer link" in why
        await new.be_ready()
        await rig.until_health("raw", Health.READY)
        assert len(rig.app.fleet.snapshot().nodes) == 1


@pytest.mark.parametrize("link_epoch", [4, 5])
async def test_an_older_link_of_a_node_is_refused(rig: Rig, link_epoch: int) -> None:
    async with RawNode(rig.link_address) as current, RawNode(rig.link_address) as late:
        await current.join(register(link_epoch=5))
        await current.be_ready()
        await late.say(register=register(link_epoch=link_epoch))
        assert await ending(late.control) == (
            grpc.StatusCode.ALREADY_EXISTS,
            "a newer link of this node is here",
        )
        await rig.until_health("raw", Health.READY)


@pytest.mark.parametrize(
    ("message", "code", "word"),
    [
        (
            {"pong": node_pb2.Pong(nonce=1)},
            grpc.StatusCode.INVALID_ARGUMENT,
            "first message must be register",
        ),
        ({"register": node_pb2.Register()}, grpc.StatusCode.FAILED_PRECONDITION, "too old"),
        (
            {"register": node_pb2.Register(protocol_version=1000)},
            grpc.StatusCode.INVALID_ARGUMENT,
            "node_id and a variant",
        ),
        (
            {"register": register(variants=[{"model": "", "digest": "d", "context_tokens": 1}])},
            grpc.StatusCode.INVALID_ARGUMENT,
            "model: is empty",
        ),
    ],
    ids=["no register", "old protocol", "empty", "bad variant"],
)
async def test_a_handshake_that_makes_no_sense_is_refused(
    rig: Rig, message: dict[str, Any], code: grpc.StatusCode, word: str
) -> None:
    async with RawNode(rig.link_address) as node:
        await node.say(**message)
        found, details = await ending(node.control)
        assert found is code
        assert word in details
    assert rig.app.fleet.snapshot().nodes == ()
    assert rig.app.registry.sessions() == ()


async def test_a_data_stream_needs_its_links_own_token_once(rig: Rig) -> None:
    async with RawNode(rig.link_address) as node, RawNode(rig.link_address) as thief:
        registered = await node.join()
        for hello in (
            node_pb2.Hello(node_id="raw", link_token="guess"),
            node_pb2.Hello(node_id="other", link_token=registered.link_token),
            node_pb2.Hello(node_id="raw", link_token=registered.link_token),
        ):
            stream: Any = thief.stubs[1].Data()
            await stream.write(node_pb2.DataRequest(hello=hello))
            code, _ = await ending(stream)
            assert code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.ALREADY_EXISTS)
        await thief.send(fragment_ack=node_pb2.FragmentAck(bytes=1))
        assert (await ending(thief.data))[0] is grpc.StatusCode.INVALID_ARGUMENT
        await node.be_ready()
        await rig.until_health("raw", Health.READY)


async def test_a_link_ends_with_either_of_its_streams(rig: Rig) -> None:
    for stream in ("control", "data"):
        async with RawNode(rig.link_address) as node:
            await node.join()
            await node.be_ready()
            await rig.until_health("raw", Health.READY)
            getattr(node, stream).cancel()
            await rig.until_health("raw", None, timeout_s=1.0)
    assert rig.app.registry.sessions() == ()
    assert rig.app.links._by_token == {}


async def test_a_node_comes_back_after_the_gateway_was_restarted() -> None:
    async with Rig() as first:
        node = await first.add_node("n1")
        first.nodes.clear()
        port = first.ports.link
    await until(lambda: not node.link.connected, what="the loss being noticed")
    link = {"port": port, "heartbeat_s": 0.2, "lost_after_s": 1.0}
    async with Rig(link=link) as second:
        second.nodes.append(node)
        await second.until_health("n1", Health.READY)
        assert text_of(await second.ask(question("r1"))) == expected_text(question("r1"))


async def test_fifty_nodes_join_at_once(rig: Rig) -> None:
    rig.nodes += await asyncio.gather(*(start_node(f"n{i}", rig.link_address) for i in range(50)))
    await until(
        lambda: sum(n.health is Health.READY for n in rig.app.fleet.snapshot().nodes) == 50,
        15.0,
        "all being ready",
    )
