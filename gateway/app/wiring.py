"""From settings to the parts of a replica."""

from __future__ import annotations

import logging
import os
import random
import secrets
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gateway.analysis import Analyzer, ModelUnusable
from gateway.dispatch import DataClasses, DispatchOptions, Levels
from gateway.dispatch.admission import Admission
from gateway.dispatch.attempt import StallLimits
from gateway.dispatch.caller import Client
from gateway.dispatch.outcomes import Outcomes
from gateway.dispatch.rates import Rates
from gateway.settings import GatewaySettings
from gateway.state import OperatorTable, Store
from gateway.state.memory_store import MemoryStore
from gateway.telemetry import OutcomeLog
from gateway.transport.clients import ClientDirectory, ClientEntry
from serving.settings import SettingsError, read_secrets
from serving.startup import ProgramArgs, check_all, check_exposure
from serving.tls import server_ssl_context
from tidegate.routing.admission import AdmissionLimits
from tidegate.routing.domain import Binding, ClassRule, Prices, Tier
from tidegate.routing.naming import ModelName, ModelNames, Portion

log = logging.getLogger(__name__)

MIN_SECRET_BYTES = 16


def fleet_secret(settings: GatewaySettings) -> bytes:
    """All replicas should share it; a random one where none is configured. Raises SettingsError."""
    if settings.fleet_secret.is_configured:
        secret = settings.fleet_secret.read().encode()
        if len(secret) < MIN_SECRET_BYTES:
            raise SettingsError(f"fleet_secret must have at least {MIN_SECRET_BYTES} bytes")
        return secret
    if settings.store.url is not None:
        log.warning("fleet_secret is not set: replicas will not share sessions and warm prefixes")
    return secrets.token_bytes(32)


def store(settings: GatewaySettings) -> Store:
    """Redis where a URL is set, else this process's memory."""
    if settings.store.url is None:
        return MemoryStore(time.monotonic)
    # Its driver takes seven megabytes, which a gateway by itself does not need.
    from gateway.state.redis_store import RedisStore

    try:
        return RedisStore(
            settings.store.url, prefix=settings.store.prefix, timeout_s=settings.store.timeout_ms / 1000
        )
    except ValueError as error:
        raise SettingsError(f"store.url: {error}") from None


def clients(settings: GatewaySettings) -> ClientDirectory:
    """API keys. Raises SettingsError for one that cannot be read."""
    keys = read_secrets(c.key for c in settings.clients)
    try:
        return ClientDirectory(
            ClientEntry(c.name, key, Client(c.tenant, c.data_class, c.admin, c.name))
            for c, key in zip(settings.clients, keys, strict=True)
        )
    except ValueError as error:
        raise SettingsError(f"clients: {error}") from None


def operator(settings: GatewaySettings) -> OperatorTable:
    """The operator's table. Raises SettingsError for a token that cannot be read."""
    guarded, nodes = [], {}
    for rule in settings.nodes:
        prices = Prices(rule.cost_per_wh, rule.cost_per_metered_mb)
        binding = Binding(
            Tier(rule.tier),
            rule.region,
            rule.trust,
            rule.cost_per_mtoken,
            frozenset(rule.tenants),
            # Without a price nothing needs to be added up per candidate.
            prices if prices != Prices() else None,
            rule.battery_floor,
        )
        if rule.join_token is not None:
            guarded.append((rule.join_token, binding))
        nodes.update(dict.fromkeys(rule.node_ids, binding))
    found = read_secrets(source for source, _ in guarded)
    tokens = [(token, binding) for token, (_, binding) in zip(found, guarded, strict=True)]
    default = None if settings.default_tier is None else Binding(Tier(settings.default_tier))
    try:
        return OperatorTable(tokens=tokens, nodes=nodes, default=default)
    except ValueError as error:
        raise SettingsError(f"nodes: {error}") from None


def data_classes(settings: GatewaySettings) -> DataClasses:
    """Loosest first."""
    return DataClasses(
        [
            (c.name, ClassRule(frozenset(c.tiers), frozenset(c.regions), frozenset(c.trust)))
            for c in settings.data_classes
        ]
    )


def levels(settings: GatewaySettings) -> Levels:
    """Defaults and limits of requests."""
    routing = settings.routing
    return Levels(
        min_p_good=routing.min_p_good,
        target_share=routing.target_share,
        max_tokens=routing.max_tokens,
        max_tokens_limit=routing.max_tokens_limit,
        names=model_names(settings),
    )


def model_names(settings: GatewaySettings) -> ModelNames:
    """The operator's names of models."""
    return ModelNames(
        (
            ModelName(
                m.name,
                m.targets,
                Portion(m.canary, m.canary_share) if m.canary else None,
                Portion(m.shadow, m.shadow_share) if m.shadow else None,
            )
            for m in settings.models
        ),
        settings.routing.aliases,
    )


def admission_limits(settings: GatewaySettings) -> AdmissionLimits:
    """Bounds of waiting."""
    queue = settings.queue
    return AdmissionLimits(
        waiting=queue.requests,
        patience_s=queue.patience_s,
        max_wait_s=queue.max_wait_s,
        floor_share=queue.floor_share,
    )


def reserved_tenants(settings: GatewaySettings) -> frozenset[str]:
    """Tenants that some node is kept for."""
    return frozenset(tenant for rule in settings.nodes for tenant in rule.tenants)


def dispatch_options(settings: GatewaySettings) -> DispatchOptions:
    """Bounds of dispatch."""
    limits = settings.limits
    return DispatchOptions(
        max_attempts=limits.max_attempts,
        explored_share=settings.routing.explored_share,
        credits=limits.credits,
        log_share=settings.routing.decision_log_share,
        stall=StallLimits(first_s=limits.first_token_stall_s, between_s=limits.token_stall_s),
    )


def admission(settings: GatewaySettings) -> Admission:
    """How much is served at once."""
    limits, tenants = settings.limits, {client.tenant for client in settings.clients}
    return Admission(limits.in_flight, limits.in_flight_mbytes * 1_000_000, shared=len(tenants) > 1)


def outcomes(settings: GatewaySettings, complexity: str, best: Callable[[], str]) -> Outcomes:
    """What is kept of answers, each with the fingerprint of the complexity model and the best variant then.

    Raises SettingsError where the log cannot be.
    """
    quality = settings.quality
    if quality.outcome_log is None:
        return Outcomes()
    try:
        writer = OutcomeLog(quality.outcome_log, max_bytes=quality.outcome_log_mbytes * 1_000_000)
    except OSError as error:
        raise SettingsError(f"quality.outcome_log: {error}") from None
    rates = Rates("verdicts", quality.verdicts_per_minute, time.monotonic)
    return Outcomes(
        writer,
        share=quality.drawn_share,
        wall_clock=time.time,
        rng=random.random,
        rates=rates,
        complexity=complexity,
        best=best,
    )


def analyzer(settings: GatewaySettings, secret: bytes) -> Analyzer:
    """Raises SettingsError for a complexity model that cannot be used."""
    try:
        return Analyzer(
            secret,
            rotate_s=settings.routing.prefix_rotation_s,
            wall_clock=time.time,
            model_path=settings.quality.complexity_model,
        )
    except ModelUnusable as error:
        raise SettingsError(f"quality.complexity_model: {error}") from None


def check_doors(settings: GatewaySettings, args: ProgramArgs) -> None:
    """Raises ProgramError for a listener beyond loopback that anybody could use."""
    keys = bool(settings.clients)
    clients_doors = {"grpc": settings.grpc, "http": settings.http}
    tokens = any(rule.join_token is not None for rule in settings.nodes)
    check_exposure(clients_doors, keys_configured=keys, insecure=args.insecure)
    check_exposure({"link": settings.link}, keys_configured=tokens, insecure=args.insecure)


def check(settings: GatewaySettings, args: ProgramArgs) -> None:
    """Everything that can be known without listening or writing. Raises SettingsError or ProgramError."""
    listeners = {"grpc": settings.grpc, "link": settings.link, "http": settings.http}
    check_all(
        lambda: check_doors(settings, args),
        lambda: fleet_secret(settings),
        lambda: clients(settings),
        lambda: operator(settings),
        lambda: store(settings),
        lambda: _check_outcome_log(settings.quality.outcome_log),
        lambda: analyzer(settings, b"a secret for checking only"),
        *(
            partial(server_ssl_context, listen.tls, f"{name}.tls")
            for name, listen in listeners.items()
            if listen.tls is not None
        ),
    )


def _check_outcome_log(path: Path | None) -> None:
    """Whether the log could be written, without making its folder. Raises SettingsError."""
    if path is None:
        return
    folder = next(each for each in path.absolute().parents if os.path.lexists(each))
    if path.is_dir() or not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise SettingsError(f"quality.outcome_log: {path} cannot be written")
