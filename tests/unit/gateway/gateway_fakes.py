"""Nodes, works and a clock for the gateway's unit tests."""

from __future__ import annotations

from dataclasses import replace

from gateway.state import Fleet, NodeRecord
from tidegate.routing.domain import (
    Announcement,
    AttemptKey,
    Binding,
    Health,
    InputKind,
    NodeLoad,
    NodeState,
    ReplayClass,
    Sampling,
    Speeds,
    Tier,
    Variant,
    Work,
)

DIGEST = "d" * 64
VARIANT = Variant("tide-1b", DIGEST, "Q4_0", 4096, 11.5, frozenset({"token_ids"}), ("tide",))
EDGE = Binding(Tier.EDGE)
CLOUD = Binding(
    Tier.CLOUD, region="eu", trust="high", cost_per_mtoken=2.0, tenants=frozenset({"default", "shop"})
)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


def announcement(node_id: str, *, boot_id: str = "boot-1", variant: Variant = VARIANT) -> Announcement:
    return Announcement(
        node_id=node_id,
        boot_id=boot_id,
        name=f"name-{node_id}",
        variants=(variant,),
        slots=4,
        queue_limit=16,
        build="test",
        replay_class=ReplayClass.TOKENS,
        replay_digest="r",
        hardware_class="test-hw",
        speeds=Speeds(1000.0, ((1, 50.0), (4, 30.0))),
    )


def node_state(node_id: str, *, binding: Binding = EDGE, health: Health = Health.READY) -> NodeState:
    return NodeState(announcement(node_id), binding, NodeLoad(), health, rtt_ms=1.0)


def node_record(replica_id: str, node_id: str) -> NodeRecord:
    return NodeRecord(replica_id, replace(node_state(node_id), linked_here=False))


def add_ready(fleet: Fleet, node_id: str, binding: Binding = EDGE, *, link_epoch: int = 1) -> None:
    """A node that could take work now."""
    fleet.register(announcement(node_id), binding, link_epoch)
    fleet.heartbeat(node_id, NodeLoad())
    fleet.rtt(node_id, 1.0)


def work(
    name: str = "r1",
    attempt_no: int = 1,
    *,
    data: bytes = b"hello",
    max_tokens: int = 8,
    work_seq: int = 0,
    credits: int = 64,
) -> Work:
    return Work(
        key=AttemptKey(name, attempt_no),
        tenant="default",
        variant_digest=DIGEST,
        input_kind=InputKind.TEXT,
        input=data,
        sampling=Sampling(),
        max_tokens=max_tokens,
        work_seq=work_seq,
        credits=credits,
    )
