"""The simulator against arithmetic that can be done by hand, and against itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from simulator_helpers import CLOUD, NODE, TRACE, fleet_of, play

from simulator.foresight import Foresight
from simulator.policies import POLICIES
from simulator.report import report
from simulator.trace import Recorded


def test_one_request_takes_its_prefill_and_its_steps() -> None:
    (served,) = play(fleet_of(NODE), [Recorded(0.0, 250, 5)], "round-robin")
    assert served.ttft_s == pytest.approx(0.25)
    assert served.total_s == pytest.approx(0.25 + 4 * 0.05)


def test_prefill_and_decode_share_one_loop() -> None:
    """The second one comes in the middle of a step of the first, and its two chunks for one step each."""
    first, second = play(fleet_of(NODE), [Recorded(0.0, 100, 20), Recorded(0.12, 200, 2)], "round-robin")
    # First token at 0.10, a step until 0.15, two steps of a chunk (0.1) beside a decode (0.05) until 0.45.
    assert second.ttft_s == pytest.approx(0.45 - 0.12)
    assert second.total_s == pytest.approx(0.55 - 0.12)
    # 1 + 1 + 2 + 1 tokens by 0.55; the other 15 alone again.
    assert first.total_s == pytest.approx(0.55 + 15 * 0.05)


def test_who_finds_no_slot_waits_for_one() -> None:
    trace = [Recorded(0.0, 10, 50), Recorded(0.0, 10, 50), Recorded(0.0, 10, 1)]
    served = play(fleet_of(NODE), trace, "always-edge")
    assert served[2].queue_s > 4.0
    assert served[2].ttft_s > served[0].ttft_s


def test_a_warm_prefix_is_not_computed_again() -> None:
    trace = [Recorded(0.0, 1024, 1, (1, 2)), Recorded(5.0, 1024, 1, (1, 2)), Recorded(9.0, 1024, 1, (8, 9))]
    served = play(fleet_of(NODE), trace, "tidegate")
    assert [s.cached for s in served] == [0, 1023, 0]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_answers_and_the_same_seed_gives_the_same(policy: str) -> None:
    noisy = {"speed_noise": 0.2, "rtt_ms": [5.0, 1.0]}
    fleet = fleet_of({**NODE, "count": 2, **noisy}, {**CLOUD, **noisy}, gateways={"replicas": 2})
    once, again = (report(fleet, play(fleet, TRACE, policy), warm_up_per_node=0) for _ in range(2))
    assert once == again
    assert once["requests"] == len(TRACE)
    assert once["rejected"] == 0


def test_exact_meets_no_fewer_budgets_than_chance_and_pays_less_than_the_cloud() -> None:
    fleet = fleet_of({**NODE, "count": 2}, CLOUD)
    of = {
        p: report(fleet, play(fleet, TRACE, p), warm_up_per_node=0)
        for p in ("exact", "round-robin", "always-cloud")
    }
    assert of["exact"]["slo_attainment"] >= of["round-robin"]["slo_attainment"]
    assert of["exact"]["cost"] < of["always-cloud"]["cost"]


def test_many_alike_steps_are_as_single_steps() -> None:
    """Cutting stretches at every arrival must change no time: a far request that does nothing proves it."""
    plain = play(fleet_of(NODE), [Recorded(0.0, 950, 40)], "round-robin")
    spec = fleet_of(NODE)
    wide = replace(spec, nodes=(replace(spec.nodes[0], slots=1),))
    cut = play(
        wide, [Recorded(0.0, 950, 40), *[Recorded(0.2 + i / 10, 10, 1) for i in range(9)]], "round-robin"
    )
    assert cut[0].total_s == pytest.approx(plain[0].total_s)


@pytest.mark.parametrize("policy", ["exact", "min-ttft"])
def test_what_is_foreseen_once_is_as_if_foreseen_for_every_request(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under overload, with a node that fails: looking ahead from the node itself each time gives the same."""
    faults = [{"at_s": 5.0, "for_s": 6.0, "kind": kind, "factor": 3.0} for kind in ("slow", "kill")]
    noisy = {"speed_noise": 0.2, "rtt_ms": [5.0, 2.0]}
    fleet = fleet_of({**NODE, "count": 2, **noisy}, {**NODE, **noisy, "name": "failing", "failures": faults})
    fast = [r._replace(at_s=r.at_s / 2, blocks=()) for r in TRACE]
    kept = [(s.ttft_s, s.total_s) for s in play(fleet, fast, policy)]
    follow = Foresight._follow

    def anew(self: Foresight, now_s: float) -> None:
        self._state = None
        follow(self, now_s)

    monkeypatch.setattr(Foresight, "_follow", anew)
    assert [(s.ttft_s, s.total_s) for s in play(fleet, fast, policy)] == kept
    assert max(total_s for _, total_s in kept) > 20.0  # they did wait
