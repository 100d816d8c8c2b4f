"""What replicas tell each other through the shared store, as JSON without any prompt or secret."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tidegate.routing.domain import (
    Announcement,
    Binding,
    Health,
    NodeLoad,
    NodeState,
    ReplayClass,
    Speeds,
    Tier,
    Variant,
)


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node as one replica sees it. `replica_id` holds a link to it."""

    replica_id: str
    state: NodeState


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """Where the last turn of a session ran, and the strictest data class it had.

    `session` is a keyed hash, never the client's own id.
    """

    session: str
    node_id: str
    variant_digest: str
    tokens: int
    data_class: str = ""


def _speeds(speeds: Speeds) -> dict[str, Any]:
    return {"prefill": speeds.prefill_tokens_per_s, "decode": speeds.decode, "age_ms": speeds.age_ms}


def _speeds_from(data: dict[str, Any]) -> Speeds:
    decode = tuple((int(b), float(t)) for b, t in data["decode"])
    return Speeds(float(data["prefill"]), decode, float(data["age_ms"]))


def _variant(v: Variant) -> dict[str, Any]:
    return {
        "model": v.model,
        "digest": v.digest,
        "quantization": v.quantization,
        "context_tokens": v.context_tokens,
        "perplexity": v.perplexity,
        "capabilities": sorted(v.capabilities),
        "aliases": v.aliases,
    }


def _variant_from(data: dict[str, Any]) -> Variant:
    return Variant(
        model=data["model"],
        digest=data["digest"],
        quantization=data["quantization"],
        context_tokens=int(data["context_tokens"]),
        perplexity=data["perplexity"],
        capabilities=frozenset(data["capabilities"]),
        aliases=tuple(data["aliases"]),
    )


def encode_node(record: NodeRecord) -> str:
    a, b, load = record.state.announcement, record.state.binding, record.state.load
    return json.dumps(
        {
            "v": 1,
            "replica_id": record.replica_id,
            "node_id": a.node_id,
            "boot_id": a.boot_id,
            "name": a.name,
            "variants": [_variant(v) for v in a.variants],
            "slots": a.slots,
            "queue_limit": a.queue_limit,
            "build": a.build,
            "replay_class": a.replay_class.value,
            "replay_digest": a.replay_digest,
            "hardware_class": a.hardware_class,
            "speeds": _speeds(record.state.speeds),
            "tier": b.tier.value,
            "region": b.region,
            "trust": b.trust,
            "cost_per_mtoken": b.cost_per_mtoken,
            "health": record.state.health.value,
            "rtt_ms": record.state.rtt_ms,
            "running": load.running,
            "queued": load.queued,
            "draining": load.draining,
        },
        separators=(",", ":"),
    )


def decode_node(text: str) -> NodeRecord:
    """Raises ValueError on anything that is not a version 1 record."""
    try:
        data = json.loads(text)
        if data["v"] != 1:
            raise ValueError(f"record version {data['v']}")
        speeds = _speeds_from(data["speeds"])
        announcement = Announcement(
            node_id=data["node_id"],
            boot_id=data["boot_id"],
            name=data["name"],
            variants=tuple(_variant_from(v) for v in data["variants"]),
            slots=int(data["slots"]),
            queue_limit=int(data["queue_limit"]),
            build=data["build"],
            replay_class=ReplayClass(data["replay_class"]),
            replay_digest=data["replay_digest"],
            hardware_class=data["hardware_class"],
            speeds=speeds,
        )
        binding = Binding(Tier(data["tier"]), data["region"], data["trust"], float(data["cost_per_mtoken"]))
        load = NodeLoad(running=data["running"], queued=data["queued"], draining=data["draining"])
        state = NodeState(
            announcement=announcement,
            binding=binding,
            load=load,
            health=Health(data["health"]),
            rtt_ms=float(data["rtt_ms"]),
            linked_here=False,
        )
        return NodeRecord(data["replica_id"], state)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a node record: {error!r}") from error


def encode_session(record: SessionRecord) -> str:
    return json.dumps(
        [record.session, record.node_id, record.variant_digest, record.tokens, record.data_class]
    )


def decode_session(text: str) -> SessionRecord:
    """Raises ValueError."""
    data = json.loads(text)
    if not (isinstance(data, list) and len(data) == 5):
        raise ValueError("not a session record")
    return SessionRecord(str(data[0]), str(data[1]), str(data[2]), int(data[3]), str(data[4]))
