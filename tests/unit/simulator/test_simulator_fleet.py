"""Fleets as files say them: what is wrong with one is named, what the schema allows is taken."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from simulator_helpers import EXAMPLE, NODE, fleet_of

from simulator.fleet import load_fleet, parse_fleet
from simulator.tables import BadInput


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"decode_tps": 30}, "node edge: decode_tps must be a list"),
        ({"decode_tps": [30]}, "node edge: decode_tps must be two numbers in brackets"),
        ({"decode_tps": []}, r"node edge: decode_tps must be \[\["),
        ({"queue_limt": 4}, 'node edge: unknown key queue_limt, did you mean "queue_limit"?'),
        ({"slots": 0}, "node edge: slots must be a whole number of 1 or more"),
        ({"prefill_tps": "fast"}, "node edge: prefill_tps must be a number"),
        ({"tier": "moon"}, "node edge: tier must be one of edge, cloud"),
        ({"failures": [{"kind": "nap"}]}, "node edge: failures: kind must be one of kill, slow, silent"),
        ({"slots": ...}, "node edge: slots must be set"),
        ({"name": ...}, "node: name must be set"),
    ],
)
def test_what_is_wrong_with_a_node_is_named(node: dict[str, object], said: str) -> None:
    changed = {key: value for key, value in {**NODE, **node}.items() if value is not ...}
    with pytest.raises(BadInput, match=said.replace("?", "[?]")):
        fleet_of(changed)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({}, "version = 1"),
        ({"version": 1, "node": []}, "needs a node"),
        ({"version": 1}, "node must be set"),
        ({"version": 1, "node": [NODE], "nodes": []}, 'unknown key nodes, did you mean "node"'),
        ({"version": 1, "node": [NODE], "gateways": {"replicas": 0}}, "replicas must be a whole number of 1"),
        ({"version": 1, "node": [NODE], "slo": [{"name": "a"}]}, "slo a: share must be set"),
        ({"version": 1, "node": [NODE], "quality": {"ability": {"small": "x"}}}, "ability: small must be"),
    ],
)
def test_what_is_wrong_with_a_fleet_is_named(broken: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        parse_fleet(broken)


def test_the_example_is_a_fleet() -> None:
    assert {spec.tier.value for spec in load_fleet(EXAMPLE).nodes} == {"edge", "cloud"}


FAULT = {"at_s": 1.0, "for_s": 2.0, "kind": "slow", "factor": 10.0}


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"decode_tps": [[1, 20], [1, 14], [2, 30]]}, "decode_tps has two points for 1 sequences at once"),
        ({"decode_tps": [[1, 1e-200]]}, "decode_tps must be from 0.001 to"),
        ({"decode_tps": [[1e300, 20]]}, "decode_tps must be [[sequences"),
        ({"prefill_tps": 0.0}, "prefill_tps must be from 0.001 to"),
        ({"prefill_tps": 10**400}, "prefill_tps must be a finite number"),
        ({"prefill_chunk": 0}, "prefill_chunk must be a whole number of 1 or more"),
        ({"cache_tokens": -1}, "cache_tokens must be a whole number of 0 or more"),
        ({"slots": -2}, "slots must be a whole number of 1 or more"),
        ({"slots": 10**400}, "slots must be at most"),
        ({"count": 10**9}, "count must be at most 100000"),
        ({"speed_noise": 800}, "speed_noise must be from 0 to 3"),
        ({"speed_noise": -0.1}, "speed_noise must be from 0 to 3"),
        ({"rtt_ms": [-5.0, 1.0]}, "rtt_ms must be 0 or more"),
        ({"rtt_ms": [5.0, -1.0]}, "rtt_ms must be 0 or more"),
        ({"cost_per_mtoken": -0.6}, "cost_per_mtoken must be 0 or more"),
        ({"failures": [{**FAULT, "factor": 0.0}]}, "failures: factor must be from 0.001 to"),
        ({"failures": [{**FAULT, "factor": -2}]}, "failures: factor must be from 0.001 to"),
        ({"failures": [{**FAULT, "at_s": -1}]}, "failures: at_s must be 0 or more"),
        ({"failures": [{**FAULT, "for_s": -1}]}, "failures: for_s must be 0 or more"),
        ({"failures": [{**FAULT, "kind": "melt"}]}, "failures: kind must be one of kill, slow, silent"),
    ],
)
def test_figures_of_a_node_that_mean_nothing_are_refused(node: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput, match=re.escape(f"node edge: {said}")):
        fleet_of({**NODE, **node})


SLO = {"name": "a", "share": 1.0}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"slo": [{**SLO, "share": -0.4}]}, "slo a: share must be from 0 to"),
        ({"slo": [{**SLO, "share": 0}]}, "needs an SLO class with a share above 0"),
        ({"slo": [{**SLO, "ttft_ms": -1}]}, "slo a: ttft_ms must be above 0"),
        ({"slo": [{**SLO, "tpot_ms": 0}]}, "slo a: tpot_ms must be above 0"),
        ({"slo": [{**SLO, "total_ms": -1}]}, "slo a: total_ms must be above 0"),
        ({"slo": [SLO, SLO]}, "slo a: name is that of another slo"),
        ({"quality": {"seen_noise": -0.1}}, "quality: seen_noise must be 0 or more"),
        ({"quality": {"required_share": 1.5}}, "quality: required_share must be from 0 to 1"),
        ({"quality": {"required_share": -0.5}}, "quality: required_share must be from 0 to 1"),
        ({"quality": {"ability": {"small": -0.1}}}, "ability: small must be from 0 to 10"),
        ({"quality": {"ability": {"small": 60}}}, "ability: small must be from 0 to 10"),
        (
            {"quality": {"ability": {"large": 0.9}}},
            "quality: ability lacks small, the variant of node edge",
        ),
        ({"node": [NODE, NODE]}, "node edge: name is that of another node"),
        (
            {"node": [{**NODE, "count": 2}, {**NODE, "name": "edge-1"}]},
            "node edge-1: name is that of another",
        ),
        ({"gateways": {"replicas": 10**6}}, "gateways: replicas must be at most 1000"),
        ({"gateways": {"heartbeat_s": 0}}, "gateways: heartbeat_s must be above 0"),
    ],
)
def test_what_makes_no_fleet_is_refused(more: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput, match=re.escape(said)):
        parse_fleet({"version": 1, "node": [NODE], **more})


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"quality": {}},
        {"quality": {"ability": {}}},
        {"quality": {"ability": {"small": 1.5, "other": 0}, "required_share": 1, "seen_noise": 0}},
        {"slo": [{"name": "a", "share": 40, "total_ms": 60000}, {"name": "b", "share": 0}]},
        {"gateways": {"replicas": 2, "heartbeat_s": 1}},
        {"node": [{**NODE, "speed_noise": 0, "rtt_ms": [5, 0], "decode_tps": [[1, 20], [4, 9]]}]},
        {"node": [{**NODE, "failures": [{"at_s": 0, "for_s": 60, "kind": "kill"}, FAULT]}]},
        {"node": [{**NODE, "cache_tokens": 0, "queue_limit": 0, "cost_per_mtoken": 1}]},
    ],
)
def test_what_the_schema_allows_is_taken(more: dict[str, object]) -> None:
    assert parse_fleet({"version": 1, "node": [NODE], **more}).nodes


def test_a_file_is_read_with_a_byte_order_mark_and_nesting_has_an_end(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert load_fleet(path) == load_fleet(EXAMPLE)
    path.write_text("a = " + "[" * 100_000)
    with pytest.raises(BadInput, match=r"fleet\.toml: nested too deeply"):
        load_fleet(path)


def test_a_step_never_gets_shorter_beyond_the_curve() -> None:
    (spec,) = fleet_of({**NODE, "slots": 64, "decode_tps": [[1, 10.0], [2, 20.0]]}).nodes
    assert [spec.step_s(n) for n in (1, 2, 3, 64)] == pytest.approx([0.1, 0.05, 0.05, 0.05])
