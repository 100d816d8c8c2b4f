"""Nodes as the gateway knows them: announced, loaded, and bound by the operator."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache


class Tier(StrEnum):
    EDGE = "edge"
    CLOUD = "cloud"


class ReplayClass(StrEnum):
    """How far another node can take over a broken stream."""

    NONE = "none"
    TEXT = "text"
    TOKENS = "tokens"


class Health(StrEnum):
    """Liveness, readiness and progress are three things; only READY takes work."""

    READY = "ready"
    NOT_READY = "not_ready"
    SUSPECT = "suspect"
    DRAINING = "draining"
    STALLED = "stalled"


@dataclass(frozen=True, slots=True)
class Variant:
    """One model file. `digest` is its identity; `perplexity` is None when it was never measured.

    `accuracy` is the share of right answers to the project's small questions, None likewise: it tells a
    broken variant from a sound one, and does not rank sound ones.
    """

    model: str
    digest: str
    quantization: str = ""
    context_tokens: int = 2048
    perplexity: float | None = None
    capabilities: frozenset[str] = frozenset()
    aliases: tuple[str, ...] = ()
    accuracy: float | None = None


def adapter_capability(name: str) -> str:
    """The capability of variants that can be asked with the LoRA adapter `name`."""
    return f"adapter:{name}"


@dataclass(frozen=True, slots=True)
class Speeds:
    """Self-measured. `decode` is ((batch_size, tokens/s per sequence), ...) ascending by batch size."""

    prefill_tokens_per_s: float
    decode: tuple[tuple[int, float], ...]
    age_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a node says of itself when it registers. Tier, region, trust and cost are not its to say."""

    node_id: str
    boot_id: str
    name: str
    variants: tuple[Variant, ...]
    slots: int
    queue_limit: int
    build: str
    replay_class: ReplayClass
    replay_digest: str
    hardware_class: str
    speeds: Speeds
    direct_endpoints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Power:
    """What a node says of its electricity and of its way to the gateway; None where it cannot know.

    `battery_share` is the charge left, in [0, 1], None without a battery. `draw_w` is what the whole device
    draws now, `work_w` how much more while its engine computes. `metered`: its uplink costs by volume.
    """

    on_battery: bool = False
    battery_share: float | None = None
    draw_w: float | None = None
    work_w: float | None = None
    metered: bool = False


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """A node's heartbeat. `last_work_seq` acknowledges this replica's work up to that number.

    `wake_ms` is how long its model would take to be loaded for work that comes now; 0 where it is.
    `trouble` says to people why the engine takes no work; `pinned_tokens` of prompts are held for good.
    `usable_slots` is how many sequences run at once at present, 0 where these are as many as announced.
    """

    running: int = 0
    queued: int = 0
    pending_prefill_tokens: int = 0
    pending_decode_tokens: int = 0
    free_cache_tokens: int = 0
    last_work_seq: int = 0
    ready: bool = True
    progress_age_ms: float = 0.0
    draining: bool = False
    speeds: Speeds | None = None
    power: Power | None = None
    wake_ms: float = 0.0
    trouble: str = ""
    pinned_tokens: int = 0
    usable_slots: int = 0


@dataclass(frozen=True, slots=True)
class Prices:
    """What else a request costs the operator there, in the money of `cost_per_mtoken`: per watt-hour that it
    makes the node draw, per megabyte over a metered link."""

    per_wh: float = 0.0
    per_metered_mb: float = 0.0


@dataclass(frozen=True, slots=True)
class Binding:
    """What the operator asserts about a node. It works for `tenants` only; an empty set means for all.

    On a battery with less than `battery_floor` of its charge left it only takes what nobody else may take.
    """

    tier: Tier
    region: str = ""
    trust: str = "standard"
    cost_per_mtoken: float = 0.0
    tenants: frozenset[str] = frozenset()
    prices: Prices | None = None
    battery_floor: float = 0.0


@dataclass(frozen=True, slots=True)
class InFlight:
    """Work this replica sent and the node has not acknowledged yet."""

    requests: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0


def slots_now(announcement: Announcement, load: NodeLoad) -> int:
    """How many sequences run there at once, at least 1."""
    announced, usable = announcement.slots, load.usable_slots
    slots = usable if 0 < usable < announced else announced
    return slots if slots > 0 else 1


@lru_cache(1024)
def _per_slot(requests: int, slots: int) -> float:
    """Nodes as busy share the number, so that who compares thousands of nodes finds it in the cache."""
    return requests / slots


@dataclass(frozen=True, slots=True)
class NodeState:
    """One node inside a snapshot.

    `prefix_blocks` holds the names of warm prefix blocks, as its reports say where it `names_blocks`.
    `slots` is how many sequences run there at once at present, `active` are the requests there, those just
    sent included, and `busy` as many of them as there are to a slot, one more while the model is not loaded:
    all are read of many nodes in every decision.
    """

    announcement: Announcement
    binding: Binding
    load: NodeLoad
    health: Health
    rtt_ms: float
    linked_here: bool = True
    in_flight: InFlight = InFlight()
    prefix_blocks: frozenset[bytes] = frozenset()
    names_blocks: bool = False
    slots: int = field(init=False, repr=False, compare=False)
    active: int = field(init=False, repr=False, compare=False)
    busy: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        load, slots = self.load, slots_now(self.announcement, self.load)
        object.__setattr__(self, "slots", slots)
        active = load.running + load.queued + self.in_flight.requests
        object.__setattr__(self, "active", active)
        object.__setattr__(self, "busy", _per_slot(active + (slots if load.wake_ms else 0), slots))

    @property
    def node_id(self) -> str:
        return self.announcement.node_id

    @property
    def speeds(self) -> Speeds:
        return self.load.speeds or self.announcement.speeds


@dataclass(frozen=True, slots=True)
class SessionHint:
    """Where the last turn of a session ran and how many tokens of it (prompt and answer) are warm there.

    `boot_id` is the process that ran it, "" where that is not known. Of its prompt the first `blocks` blocks
    had names. Where these are held no more, nothing else is; of a `fresh` turn the node has told nothing yet.
    """

    node_id: str
    variant_digest: str
    tokens: int
    boot_id: str = ""
    blocks: int = 0
    fresh: bool = False
