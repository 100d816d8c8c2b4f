"""Prometheus metrics of a gateway replica. The one door of prometheus_client in the gateway."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

LATENCY_S = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_S = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0)
DECISION_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05)


class Metrics:
    """Written by dispatch and the links only."""

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.requests = Counter(
            "tidegate_requests_total", "Requests by how they ended", ["tier", "code", "reason"], registry=r
        )
        self.budgets = Counter(
            "tidegate_budget_total", "Requests with a budget, met or missed", ["tier", "outcome"], registry=r
        )
        self.cost = Counter(
            "tidegate_cost_total",
            "What finished answers cost, in the money of cost_per_mtoken",
            ["tier"],
            registry=r,
        )
        self.margin = Gauge(
            "tidegate_budget_margin_ratio",
            "Share of a budget that predictions must leave to spare, learned; the largest of all",
            ["tier"],
            registry=r,
        )
        self.ttft = Histogram(
            "tidegate_ttft_seconds", "Arrival to first token", ["tier"], buckets=LATENCY_S, registry=r
        )
        self.tpot = Histogram(
            "tidegate_time_per_output_token_seconds",
            "Mean time per token after the first",
            ["tier"],
            buckets=TOKEN_S,
            registry=r,
        )
        self.duration = Histogram(
            "tidegate_request_duration_seconds", "Arrival to end", ["tier"], buckets=LATENCY_S, registry=r
        )
        self.decision = Histogram(
            "tidegate_decision_seconds",
            "Routing: filters, predictions, choice",
            buckets=DECISION_S,
            registry=r,
        )
        self.ttft_error = Histogram(
            "tidegate_ttft_prediction_ratio",
            "Measured over predicted time to first token",
            ["tier"],
            buckets=(0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0),
            registry=r,
        )
        self.ttft_p95 = Counter(
            "tidegate_ttft_p95_kept_total",
            "Attempts whose first token came within its predicted 95th percentile: 95 of 100 are meant to",
            ["tier", "kept"],
            registry=r,
        )
        self.tokens = Counter(
            "tidegate_tokens_total",
            "Prompt, cached and completion tokens",
            ["tier", "kind"],
            registry=r,
        )
        self.attempts = Counter(
            "tidegate_attempts_total", "Attempts by outcome", ["tier", "outcome"], registry=r
        )
        self.in_flight = Gauge("tidegate_requests_in_flight", "Requests being served", registry=r)
        self.waiting = Gauge("tidegate_requests_waiting", "Requests waiting for room on a node", registry=r)
        self.wait = Histogram(
            "tidegate_wait_seconds",
            "Wait for room, of requests that did not find any at once",
            buckets=LATENCY_S,
            registry=r,
        )
        self.shed = Counter(
            "tidegate_shed_total", "Requests refused because of load before any work", ["reason"], registry=r
        )
        self.shadows = Counter(
            "tidegate_shadows_total", "Copies to shadow models by how they ended", ["outcome"], registry=r
        )
        self.nodes = Gauge("tidegate_nodes", "Linked nodes by health", ["tier", "health"], registry=r)
        self.store_up = Gauge("tidegate_store_up", "1 when the shared store answers", registry=r)
        self.link_events = Counter("tidegate_link_events_total", "Link life", ["event"], registry=r)
        self.internal_errors = Counter(
            "tidegate_internal_errors_total", "Defects caught at a boundary", ["where"], registry=r
        )

    def exposition(self) -> bytes:
        return generate_latest(self.registry)
