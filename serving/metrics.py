"""Prometheus metrics of a node, read from its load at the moment of the scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from tidegate.routing.domain import NodeLoad

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class NodeMetrics(Collector):
    """`load` returns None until the engine has started, `links` (connected, configured)."""

    def __init__(self, load: Callable[[], NodeLoad | None], links: Callable[[], tuple[int, int]]) -> None:
        self._load = load
        self._links = links
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def collect(self) -> Iterator[Metric]:
        load = self._load()
        connected, configured = self._links()
        known = load or NodeLoad(ready=False)
        speeds = known.speeds
        values: dict[str, tuple[str, float]] = {
            "ready": ("1 when the engine takes work", known.ready and load is not None),
            "draining": ("1 when the node finishes and takes no more", known.draining),
            "running_sequences": ("Sequences being computed", known.running),
            "queued_sequences": ("Sequences waiting for a slot", known.queued),
            "usable_slots": ("Sequences that run at once at present", known.usable_slots),
            "pending_prefill_tokens": (
                "Uncached prompt tokens waiting or in prefill",
                known.pending_prefill_tokens,
            ),
            "pending_decode_tokens": (
                "Tokens that running sequences may still produce",
                known.pending_decode_tokens,
            ),
            "free_cache_tokens": ("Tokens of prompts before anything warm is lost", known.free_cache_tokens),
            "pinned_tokens": ("Tokens of pinned system prompts that are held for good", known.pinned_tokens),
            "progress_age_seconds": (
                "Time since the last step while work runs",
                known.progress_age_ms / 1000,
            ),
            "prefill_tokens_per_second": ("Own measurement", speeds.prefill_tokens_per_s if speeds else 0.0),
            "wake_seconds": ("Time to load the model; 0 where it is loaded", known.wake_ms / 1000),
            "links_connected": ("Gateways with a link", connected),
            "links_configured": ("Gateways in the settings", configured),
        }
        power = known.power
        if power is not None and power.battery_share is not None:
            values["battery_ratio"] = ("Charge left in its batteries", power.battery_share)
            values["on_battery"] = ("1 when nothing else feeds it", power.on_battery)
        if power is not None and power.draw_w is not None:
            values["draw_watts"] = ("What the device draws now", power.draw_w)
        for name, (help_text, value) in values.items():
            yield GaugeMetricFamily(f"tidegate_node_{name}", help_text, value=float(value))
        trouble = GaugeMetricFamily(
            "tidegate_node_trouble", "1 with the reason while the engine takes no work", labels=["reason"]
        )
        if known.trouble:
            trouble.add_metric([known.trouble], 1.0)
        yield trouble

    def render(self) -> bytes:
        return generate_latest(self._registry)
