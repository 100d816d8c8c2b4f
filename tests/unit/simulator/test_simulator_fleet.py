"""Fleets as files say them: what is wrong with one is named, what the schema allows is taken."""

from __future__ import annotations

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
