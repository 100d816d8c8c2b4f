from __future__ import annotations

import pytest

from serving.engines.openai_http.metrics import MetricsUnreadable, UpstreamMetrics, parse_metrics

VLLM = """
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
vllm:num_requests_running{engine="0",model_name="other"} 50.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 4.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.25
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",num_gpu_blocks="100",engine="0"} 1.0
# TYPE vllm:e2e_request_latency_seconds histogram
vllm:e2e_request_latency_seconds_bucket{le="0.3",model_name="m"} 1.0
this line of another exporter is broken {{{
"""
SGLANG = """
sglang:num_running_reqs{model_name="m"} 7
sglang:num_queue_reqs{model_name="m"} 1
sglang:token_usage{model_name="m"} 0.125
sglang:max_total_num_tokens{model_name="m"} 4096
"""
LLAMA = """
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 1
llamacpp:requests_deferred 2
llamacpp:kv_cache_usage_ratio 0.75
"""


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (VLLM, UpstreamMetrics(running=5, waiting=4, cache_used=0.375, cache_tokens=1600)),
        (SGLANG, UpstreamMetrics(running=7, waiting=1, cache_used=0.125, cache_tokens=4096)),
        (LLAMA, UpstreamMetrics(running=1, waiting=2, cache_used=0.75)),
        ("python_gc_objects_collected_total 5\n", UpstreamMetrics()),
        ("", UpstreamMetrics()),
    ],
)
def test_pages_of_known_servers(page: str, expected: UpstreamMetrics) -> None:
    assert parse_metrics(page, model="m") == expected
    assert expected.says_anything == (expected.running is not None)


def test_a_model_that_is_named_otherwise_still_counts() -> None:
    assert parse_metrics(SGLANG, model="an-alias").running == 7


def test_older_vllm_names() -> None:
    assert parse_metrics("vllm:gpu_cache_usage_perc 0.5\n").cache_used == 0.5


def test_nan_and_shares_out_of_range() -> None:
    metrics = parse_metrics("vllm:num_requests_running NaN\nsglang:token_usage 1.5\n")
    assert metrics == UpstreamMetrics(cache_used=1.0)


def test_absurd_numbers_are_bounded() -> None:
    page = "vllm:num_requests_running 1e300\nvllm:num_requests_waiting +Inf\nsglang:num_queue_reqs -4\n"
    page += 'vllm:cache_config_info{num_gpu_blocks="9999999999999",block_size="16"} 1\n'
    assert parse_metrics(page) == UpstreamMetrics(running=10**9, waiting=0)


def test_a_broken_line_that_matters_is_unreadable() -> None:
    with pytest.raises(MetricsUnreadable):
        parse_metrics("vllm:num_requests_running{model_name= 5\n")
