"""What nodes that fail do to the requests on them."""

from __future__ import annotations

import pytest
from simulator_helpers import NODE, TRACE, fleet_of, play


@pytest.mark.parametrize("kind", ["kill", "slow", "silent"])
@pytest.mark.parametrize("policy", ["tidegate", "load-per-slot"])
def test_a_failing_node_takes_no_request_with_it_that_has_no_token_yet(kind: str, policy: str) -> None:
    fault = {"at_s": 4.05, "for_s": 20.0, "kind": kind, "factor": 10.0}
    fleet = fleet_of({**NODE, "failures": [fault]}, {**NODE, "name": "other"})
    slowly = [r._replace(at_s=r.at_s * 5) for r in TRACE[:40]]
    served = play(fleet, slowly, policy)
    lost = sum(s.node is None for s in served)
    assert lost <= 2  # those that were being answered there
    healthy = play(fleet_of(NODE, {**NODE, "name": "other"}), slowly, policy)
    assert sum(s.total_s for s in served if s.node) > sum(s.total_s for s in healthy if s.node)
