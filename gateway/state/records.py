"""What replicas tell each other through the shared store, as JSON without any prompt or secret."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any, TypeVar

from tidegate.routing.domain import (
    Announcement,
    Binding,
    Health,
    NodeLoad,
    NodeState,
    Power,
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
    boot_id: str = ""
    blocks: int = 0


T = TypeVar("T")


# What another process wrote is checked value by value: a wrong type would surface later, on a request's path.


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("not a whole number")
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError("not a finite number")
    return float(value)


def _list(value: object, item: Callable[[object], T]) -> tuple[T, ...]:
    if not isinstance(value, list):
        raise ValueError("not a list")
    return tuple(item(v) for v in value)


def _speeds(speeds: Speeds) -> dict[str, Any]:
    return {"prefill": speeds.prefill_tokens_per_s, "decode": speeds.decode, "age_ms": speeds.age_ms}


def _speeds_from(data: dict[str, Any]) -> Speeds:
    decode = tuple((_count(b), _number(t)) for b, t in data["decode"])
    return Speeds(_number(data["prefill"]), decode, _number(data["age_ms"]))


def _variant(v: Variant) -> dict[str, Any]:
    return {
        "model": v.model,
        "digest": v.digest,
        "quantization": v.quantization,
        "context_tokens": v.context_tokens,
        "perplexity": v.perplexity,
        "capabilities": sorted(v.capabilities),
        "aliases": v.aliases,
        "accuracy": v.accuracy,
    }


def _variant_from(data: dict[str, Any]) -> Variant:
    return Variant(
        model=_text(data["model"]),
        digest=_text(data["digest"]),
        quantization=_text(data["quantization"]),
        context_tokens=_count(data["context_tokens"]),
        perplexity=None if data["perplexity"] is None else _number(data["perplexity"]),
        capabilities=frozenset(_list(data["capabilities"], _text)),
        aliases=_list(data["aliases"], _text),
        # A replica of the former version does not write it.
        accuracy=None if data.get("accuracy") is None else _number(data["accuracy"]),
    )


def _power(data: Any) -> Power:
    on_battery, share, draw, work, metered = data
    share, draw, work = (None if value is None else _number(value) for value in (share, draw, work))
    return Power(on_battery is True, share, draw, work, metered is True)


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
            "tenants": sorted(b.tenants),
            "health": record.state.health.value,
            "rtt_ms": record.state.rtt_ms,
            "running": load.running,
            "queued": load.queued,
            "draining": load.draining,
            "usable_slots": load.usable_slots,
            "wake_ms": load.wake_ms,
            "trouble": load.trouble,
            "power": None if load.power is None else astuple(load.power),
        },
        separators=(",", ":"),
    )


def decode_node(text: str) -> NodeRecord:
    """Raises ValueError on anything that is not a version 1 record."""
    try:
        data = json.loads(text)
        if data["v"] != 1:
            raise ValueError("another version's record")
        announcement = Announcement(
            node_id=_text(data["node_id"]),
            boot_id=_text(data["boot_id"]),
            name=_text(data["name"]),
            variants=tuple(_variant_from(v) for v in data["variants"]),
            slots=_count(data["slots"]),
            queue_limit=_count(data["queue_limit"]),
            build=_text(data["build"]),
            replay_class=ReplayClass(data["replay_class"]),
            replay_digest=_text(data["replay_digest"]),
            hardware_class=_text(data["hardware_class"]),
            speeds=_speeds_from(data["speeds"]),
        )
        binding = Binding(
            tier=Tier(data["tier"]),
            region=_text(data["region"]),
            trust=_text(data["trust"]),
            cost_per_mtoken=_number(data["cost_per_mtoken"]),
            # Absent in records of older gateways, which knew no tenants.
            tenants=frozenset(_text(t) for t in data.get("tenants", ())),
        )
        load = NodeLoad(
            running=_count(data["running"]),
            queued=_count(data["queued"]),
            draining=data["draining"] is True,
            trouble=_text(data.get("trouble", "")),
            # A replica of the former version does not write these.
            usable_slots=_count(data.get("usable_slots", 0)),
            wake_ms=_number(data.get("wake_ms", 0.0)),
            power=None if data.get("power") is None else _power(data["power"]),
        )
        state = NodeState(
            announcement=announcement,
            binding=binding,
            load=load,
            health=Health(data["health"]),
            rtt_ms=_number(data["rtt_ms"]),
            linked_here=False,
        )
        return NodeRecord(_text(data["replica_id"]), state)
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"not a node record: {type(error).__name__}") from error


def encode_session(record: SessionRecord) -> str:
    return json.dumps(astuple(record))


def decode_session(text: str) -> SessionRecord:
    """Raises ValueError on anything that is not a session record."""
    try:
        # Replicas of before tell neither process nor blocks; the data class must not be lost for it.
        session, node_id, digest, tokens, data_class, *more = json.loads(text)
        boot_id, blocks = more or ("", 0)
    except (TypeError, RecursionError) as error:
        raise ValueError("not a session record") from error
    return SessionRecord(
        _text(session),
        _text(node_id),
        _text(digest),
        _count(tokens),
        _text(data_class),
        _text(boot_id),
        _count(blocks),
    )
