"""The one door to the Prometheus text parser: an inference server's own metrics, read for its load."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

_RUNNING = frozenset({"vllm:num_requests_running", "sglang:num_running_reqs", "llamacpp:requests_processing"})
_WAITING = frozenset({"vllm:num_requests_waiting", "sglang:num_queue_reqs", "llamacpp:requests_deferred"})
_CACHE_USED = frozenset(
    {
        "vllm:gpu_cache_usage_perc",
        "vllm:kv_cache_usage_perc",
        "sglang:token_usage",
        "llamacpp:kv_cache_usage_ratio",
    }
)
_CACHE_TOKENS = "sglang:max_total_num_tokens"
_CACHE_BLOCKS = "vllm:cache_config_info"
_MOST = 1e9  # beyond it a number is nonsense, and would not fit the link's messages
_WANTED = tuple(sorted(_RUNNING | _WAITING | _CACHE_USED | {_CACHE_TOKENS, _CACHE_BLOCKS}))


class MetricsUnreadable(Exception):
    """The text is not in Prometheus' format."""


@dataclass(frozen=True, slots=True)
class UpstreamMetrics:
    """What a server says of itself, all its clients' work together; None where it says nothing.

    `cache_used` is a share in [0, 1], the mean over the server's engines.
    """

    running: int | None = None
    waiting: int | None = None
    cache_used: float | None = None
    cache_tokens: int | None = None

    @property
    def says_anything(self) -> bool:
        return self != UpstreamMetrics()


def parse_metrics(text: str, *, model: str = "") -> UpstreamMetrics:
    """Reads only the lines it knows: a server's full page holds thousands. Raises MetricsUnreadable.

    With `model`, samples labelled with another model's name are left out unless all are.
    """
    wanted = "".join(f"{line}\n" for line in text.splitlines() if line.startswith(_WANTED))
    try:
        samples = [s for family in text_string_to_metric_families(wanted) for s in family.samples]
    except (ValueError, IndexError, KeyError) as error:
        raise MetricsUnreadable(type(error).__name__) from error
    ours = [s for s in samples if s.labels.get("model_name", model) == model]
    samples = ours or samples
    used = _values(samples, _CACHE_USED)
    return UpstreamMetrics(
        running=_total(_values(samples, _RUNNING)),
        waiting=_total(_values(samples, _WAITING)),
        cache_used=min(max(sum(used) / len(used), 0.0), 1.0) if used else None,
        cache_tokens=_cache_tokens(samples),
    )


def _values(samples: Iterable[Sample], names: frozenset[str]) -> list[float]:
    return [_bounded(s.value) for s in samples if s.name in names and math.isfinite(s.value)]


def _bounded(value: float) -> float:
    return min(max(value, 0.0), _MOST)


def _total(values: list[float]) -> int | None:
    return round(_bounded(sum(values))) if values else None


def _cache_tokens(samples: list[Sample]) -> int | None:
    total = sum(_values(samples, frozenset({_CACHE_TOKENS})))
    for sample in samples:
        if sample.name == _CACHE_BLOCKS:
            total += _label_number(sample, "num_gpu_blocks") * _label_number(sample, "block_size")
    return round(_bounded(total)) or None


def _label_number(sample: Sample, name: str) -> int:
    text = sample.labels.get(name, "")
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else 0
