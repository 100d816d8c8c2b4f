"""Settings of the gateway."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from serving.settings import ListenSettings, LogSettings, ProgramSettings, SecretSource, Section
from tidegate.routing.crowding import WEIGHT as CROWDING_WEIGHT
from tidegate.routing.domain import TARGET_SHARE


class GrpcSettings(ListenSettings):
    port: int = Field(default=50051, ge=0, le=65535, description="TCP port of the client API; 0: a free one")


class LinkSettings(ListenSettings):
    port: int = Field(default=50052, ge=0, le=65535, description="TCP port nodes dial; 0 takes a free one")
    heartbeat_s: float = Field(
        default=2.0, gt=0, le=60, description="Seconds between a node's heartbeats when nothing changes"
    )
    lost_after_s: float = Field(
        default=5.5, gt=0, description="Seconds of silence after which a node's link is given up"
    )

    @property
    def suspect_after_s(self) -> float:
        """Two missed heartbeats, with some room for one that is late."""
        return 2.25 * self.heartbeat_s

    @model_validator(mode="after")
    def _silence_outlasts_suspicion(self) -> Self:
        if self.lost_after_s <= self.suspect_after_s:
            raise ValueError(f"lost_after_s must be above 2.25 heartbeats, {self.suspect_after_s:g} s")
        return self


class HttpSettings(ListenSettings):
    port: int = Field(
        default=8080,
        ge=0,
        le=65535,
        description="TCP port of the OpenAI API; 0: a free one",
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=(), description="Host names accepted besides loopback when listening on loopback without keys"
    )


class StoreSettings(Section):
    url: str | None = Field(
        default=None, description="Redis or Valkey URL; unset keeps state in this process (a single replica)"
    )
    prefix: str = Field(default="tidegate:", description="Prefix of all keys")
    timeout_ms: float = Field(default=200.0, gt=0, description="Longest wait per command in milliseconds")
    interval_ms: float = Field(default=1000.0, gt=0, description="Milliseconds between two rounds of sharing")


class ClientKey(Section):
    """One API key."""

    name: str = Field(description="Name of the key in logs")
    key: SecretSource = Field(description="Where the key comes from")
    tenant: str = Field(default="default", description="Tenant whose requests these are")
    data_class: str = Field(default="", description="Least data class of all requests with this key")
    admin: bool = Field(default=False, description="May list nodes and read explanations and metrics")


class NodeRule(Section):
    """One row of the operator's table: what holds for the nodes it names."""

    join_token: SecretSource | None = Field(default=None, description="Join token of these nodes")
    node_ids: tuple[str, ...] = Field(default=(), description="Node ids of this row, before tokens")
    tier: Literal["edge", "cloud"] = Field(description="Tier of these nodes")
    region: str = Field(default="", description="Region of these nodes")
    trust: str = Field(default="standard", description="Trust level of these nodes")
    cost_per_mtoken: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="Price of a million tokens there"
    )
    tenants: tuple[str, ...] = Field(default=(), description="Tenants these nodes work for; empty: all")
    cost_per_wh: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="Price of a watt-hour there, where a node reports what work makes it draw",
    )
    cost_per_metered_mb: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="Price of a MB, where a node's link is metered"
    )
    battery_floor: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of its charge below which a node on battery takes only what nobody else may take",
    )

    @model_validator(mode="after")
    def _names_somebody(self) -> Self:
        if self.join_token is None and not self.node_ids:
            raise ValueError("a row needs a join_token or node_ids, or it is for nobody")
        return self


class DataClassRule(Section):
    """Where requests of a data class may go; empty lists allow all."""

    name: str = Field(description="Label requests carry")
    tiers: tuple[Literal["edge", "cloud"], ...] = Field(default=(), description="Tiers allowed")
    regions: tuple[str, ...] = Field(default=(), description="Regions allowed")
    trust: tuple[str, ...] = Field(default=(), description="Trust levels allowed")


class RoutingSettings(Section):
    policy: Literal["tidegate", "round-robin", "always-edge", "always-cloud", "least-outstanding"] = Field(
        default="tidegate", description="Routing policy; the others are baselines to compare with"
    )
    target_share: float = Field(
        default=TARGET_SHARE,
        gt=0,
        lt=1,
        description="Share of requests that must meet their budget where unset",
    )
    min_p_good: float = Field(
        default=0.0, ge=0, le=1, description="Least probability of a good answer where a request sets none"
    )
    max_tokens: int = Field(default=256, gt=0, description="Answer length in tokens where unset")
    max_tokens_limit: int = Field(default=8192, gt=0, description="Longest answer allowed, in tokens")
    decision_log_share: float = Field(
        default=0.0, ge=0, le=1, description="Share of decisions logged with all their candidates"
    )
    aliases: dict[str, str] = Field(default={}, description="Model aliases of the operator: alias -> model")
    margin_limit: float = Field(
        default=2.0,
        ge=1,
        le=10,
        allow_inf_nan=False,
        description="Largest factor by which predictions must come to be sooner than a budget, learned from "
        "budgets that were missed; 1 learns none",
    )
    crowding_weight: float = Field(
        default=CROWDING_WEIGHT,
        ge=0,
        le=100,
        allow_inf_nan=False,
        description="How many others a prompt may push off busy cheap nodes before it goes to a dearer one "
        "that would do as well: fewer requests leave for the dear tier, but more tokens; 0 always takes "
        "the cheapest",
    )
    explored_share: float = Field(
        default=0.01,
        ge=0,
        le=0.2,
        description="Share of requests that go to another node that would do as well, to learn of it",
    )
    probe_after_s: float = Field(
        default=300.0,
        ge=0,
        description="Seconds without work after which an idle node is asked for a few tokens, to know its "
        "speed; one that looks slow after a fifth of it; 0 asks nobody",
    )
    prefix_rotation_s: float = Field(
        default=604_800.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds after which a tenant's prefixes get other names, which then have to become warm "
        "again; 0 keeps them",
    )


class QualitySettings(Section):
    complexity_model: Path | None = Field(
        default=None,
        description="Folder of benchmarks/complexity/train.py, or its model.onnx; unset: the shipped prior",
    )
    outcome_log: Path | None = Field(
        default=None, description="File that outcomes are appended to, without prompt text; unset keeps none"
    )
    outcome_log_mbytes: int = Field(
        default=64, gt=0, description="Size in MB at which the outcome log is rotated; five files are kept"
    )
    drawn_share: float = Field(
        default=0.02, gt=0, le=1, description="Chance of each answer to be drawn for a verdict"
    )
    order: tuple[str, ...] = Field(
        default=(),
        description="Variants from the best down, before all it does not name: model, MODEL:QUANTIZATION or "
        "digest. Others rank by cost, tier and perplexity",
    )
    verdicts_per_minute: float = Field(
        default=600.0,
        gt=0,
        allow_inf_nan=False,
        description="Verdicts that one API key may give per minute; more are refused with RetryInfo",
    )
    certificates: Path | None = Field(
        default=None, description="Folder that `tidegate calibrate` writes certificates to; unset: none"
    )


class ModelRule(Section):
    """One name that clients may ask for, and the models behind it."""

    name: str = Field(min_length=1, description="Name that clients ask for")
    targets: tuple[str, ...] = Field(
        min_length=1, description="Models behind it, in order: the next serves where one before cannot"
    )
    canary: str = Field(default="", description="Model that gets a share of the sessions instead")
    canary_share: float = Field(default=0.0, ge=0, le=1, description="That share")
    shadow: str = Field(default="", description="Model that gets copies, whose answers are thrown away")
    shadow_share: float = Field(default=0.0, ge=0, le=1, description="Share of the requests copied")


class LimitSettings(Section):
    in_flight: int = Field(
        default=1000,
        gt=0,
        description="Requests served at once; more are refused. One of several tenants takes about 8/9",
    )
    in_flight_mbytes: int = Field(
        default=256, gt=0, description="Prompt text of all requests served at once, in MB; more is refused"
    )
    max_attempts: int = Field(default=3, ge=1, le=10, description="Tries per request before its first token")
    first_token_stall_s: float = Field(
        default=5.0, gt=0, description="Seconds beyond five times the prediction to wait for a first token"
    )
    token_stall_s: float = Field(default=10.0, gt=0, description="Seconds between two outputs of a node")
    write_stall_s: float = Field(
        default=30.0, gt=0, description="Seconds a client may read nothing before it is cut"
    )
    credits: int = Field(default=64, ge=4, description="Chunks a node may send ahead per request")
    drain_s: float = Field(default=20.0, ge=0, le=25, description="Seconds for running requests at SIGTERM")


class QueueSettings(Section):
    """Requests wait in the gateway, in order, as long as no node that may serve them has room."""

    requests: int = Field(
        default=256, ge=0, description="Requests that may wait; 0 leaves all waiting to the nodes' own queues"
    )
    max_wait_s: float = Field(default=60.0, gt=0, le=600, description="Longest wait for room, in seconds")
    patience_s: float = Field(
        default=2.0,
        ge=0,
        description="Seconds a request without a budget waits for a cheaper node while a costlier has room",
    )
    floor_share: float = Field(
        default=0.05, gt=0, lt=1, description="Share of tokens that lower priorities get while higher wait"
    )


DEFAULT_CLASSES = (
    DataClassRule(name="public"),
    DataClassRule(name="internal"),
    DataClassRule(name="restricted", tiers=("edge",)),
)


class GatewaySettings(ProgramSettings):
    """Everything an operator may set for a gateway replica."""

    program: ClassVar[str] = "gateway"

    drain_grace_s: float = Field(
        default=3.0,
        ge=0,
        description="Running requests get limits.drain_s; what still runs 30 s and this after SIGTERM or "
        "SIGINT is cut off",
    )
    replica_id: str = Field(default="", description="Name of this replica; empty makes one up")
    grpc: GrpcSettings = Field(default=GrpcSettings(), description="Client API (gRPC)")
    link: LinkSettings = Field(default=LinkSettings(), description="Node links (gRPC)")
    http: HttpSettings = Field(default=HttpSettings(), description="OpenAI API, metrics, health (HTTP)")
    store: StoreSettings = Field(default=StoreSettings(), description="State shared between replicas")
    fleet_secret: SecretSource = Field(
        default=SecretSource(),
        description="Secret of 16 bytes or more that all replicas share, a key for names of prefixes and "
        "sessions; unset is random",
    )
    clients: tuple[ClientKey, ...] = Field(default=(), description="API keys; none leaves the doors open")
    nodes: tuple[NodeRule, ...] = Field(default=(), description="Operator's table of nodes")
    default_tier: Literal["edge", "cloud"] | None = Field(
        default=None,
        description="Tier of nodes in no row, where no join token is configured; unset turns them away",
    )
    data_classes: tuple[DataClassRule, ...] = Field(
        default=DEFAULT_CLASSES, description="Data classes, loosest first; the first one is the default"
    )
    routing: RoutingSettings = Field(default=RoutingSettings(), description="How nodes are chosen")
    quality: QualitySettings = Field(default=QualitySettings(), description="How good answers are")
    models: tuple[ModelRule, ...] = Field(default=(), description="Names of models that clients may ask for")
    limits: LimitSettings = Field(default=LimitSettings(), description="Bounds")
    queue: QueueSettings = Field(default=QueueSettings(), description="Waiting for room on a node")
    log: LogSettings = Field(default=LogSettings(), description="What is logged to stderr")

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        """What no single field can tell."""
        classes = [c.name for c in self.data_classes]
        if len(set(classes)) != len(classes):
            raise ValueError("data_classes: a name is listed twice")
        names = [c.name for c in self.clients]
        if len(set(names)) != len(names):
            raise ValueError("clients: a name is listed twice")
        for client in self.clients:
            if client.data_class and client.data_class not in classes:
                raise ValueError(f"clients: {client.name} names the unknown data class {client.data_class!r}")
        models = [m.name for m in self.models]
        if len(set(models)) != len(models):
            raise ValueError("models: a name is listed twice")
        for model in self.models:
            behind = {*model.targets, model.canary, model.shadow} & set(models) - {model.name}
            if behind:
                raise ValueError(f"models: {model.name} stands for another name, {min(behind)!r}")
        if self.routing.max_tokens > self.routing.max_tokens_limit:
            raise ValueError("routing: max_tokens is above max_tokens_limit")
        return self
