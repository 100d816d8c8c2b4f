"""What nodes that fail do to the requests on them."""

from __future__ import annotations

import pytest
from simulator_helpers import NODE, TRACE, fleet_of, play

from simulator.gateway import Asked, Gateway, Try
from simulator.trace import Recorded
from tidegate.routing.admission import AdmissionQueue
from tidegate.routing.crowding import Crowding
from tidegate.routing.domain import AttemptKey
from tidegate.routing.fleet import Fleet
from tidegate.routing.latency import LearnedLatency
from tidegate.routing.observation import Observation, Outcome
from tidegate.routing.plan import Plan
from tidegate.routing.waiting import Ticket


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


LONE = {**NODE, "slots": 1, "decode_tps": [[1, 10.0]]}
# A first token after 0.1 s and 399 steps of 0.1 s.
LONG = Recorded(0.0, 100, 400)


def faulty(*faults: tuple[float, float, str, float]) -> dict[str, object]:
    keys = ("at_s", "for_s", "kind", "factor")
    return {**LONE, "failures": [dict(zip(keys, fault, strict=True)) for fault in faults]}


@pytest.mark.parametrize("policy", ["round-robin", "exact", "tidegate"])
def test_a_slow_node_is_as_fast_as_before_when_its_fault_ends(policy: str) -> None:
    """Ten seconds at a tenth of the speed are worth one."""
    (served,) = play(fleet_of(faulty((5.0, 10.0, "slow", 10.0))), [LONG], policy)
    assert served.total_s == pytest.approx(40.0 + 9.0)


def test_a_step_under_way_is_slow_only_as_long_as_the_fault() -> None:
    """One chunk of 100 tokens takes 0.1 s: half of it before, a thousandth of a second's work within."""
    (served,) = play(fleet_of(faulty((0.05, 1.0, "slow", 1000.0))), [LONG], "round-robin")
    assert served.ttft_s == pytest.approx(0.05 + 1.0 + 0.049)


def test_slow_faults_that_overlap_multiply_and_leave_nothing() -> None:
    """5 s at 1/2, 5 s at 1/6, 5 s at 1/3 are worth 5 s in all."""
    overlapping = faulty((5.0, 10.0, "slow", 2.0), (10.0, 10.0, "slow", 3.0))
    (served,) = play(fleet_of(overlapping), [LONG], "round-robin")
    assert served.total_s == pytest.approx(40.0 + 15.0 - 5.0)


@pytest.mark.parametrize("policy", ["round-robin", "exact", "tidegate"])
def test_a_silent_node_goes_on_where_it_stood(policy: str) -> None:
    """Too short to be noticed; who comes meanwhile waits. The step under way, 0.05 s of it, begins anew."""
    silent = faulty((5.05, 1.0, "silent", 1.0))
    served = play(fleet_of(silent), [LONG, Recorded(5.5, 100, 1)], policy)
    assert served[0].total_s == pytest.approx(40.0 + 1.0 + 0.05)
    assert served[1].ttft_s == pytest.approx(served[0].total_s - 5.5 + 0.1)


@pytest.mark.parametrize("other", ["kill", "silent"])
@pytest.mark.parametrize("policy", ["round-robin", "tidegate"])
def test_a_killed_node_stays_away_until_its_last_fault_has_ended(policy: str, other: str) -> None:
    killed = faulty((1.0, 60.0, "kill", 1.0), (2.0, 3.0, other, 1.0))
    served = play(
        fleet_of(killed), [Recorded(0.0, 10, 1), Recorded(20.0, 10, 1), Recorded(70.0, 10, 1)], policy
    )
    assert [s.node is not None for s in served] == [True, False, True]


PATIENT = {"slo": [{"name": "all", "share": 1.0, "ttft_ms": 500_000}]}
# Seven seconds of prefill: no first token yet when a fault comes.
SLOW_TO_BEGIN = Recorded(0.0, 7000, 5)
SPARE = {**LONE, "name": "spare", "cost_per_mtoken": 1.0}


def test_a_request_does_not_go_back_to_a_node_it_was_lost_on() -> None:
    """The first node is there again when the second one fails too."""
    first = faulty((1.0, 0.5, "kill", 1.0))
    second = {**faulty((2.0, 50.0, "kill", 1.0)), "name": "spare", "cost_per_mtoken": 1.0}
    (served,) = play(fleet_of(first, second), [SLOW_TO_BEGIN], "tidegate")
    assert served.node is None


def test_nor_does_it_after_it_has_waited() -> None:
    """The other node is busy, so that it waits; the one that lost it is back and idle."""
    trace = [SLOW_TO_BEGIN, Recorded(0.1, 7000, 5)]
    served = play(fleet_of(faulty((1.0, 0.5, "kill", 1.0)), SPARE), trace, "tidegate")
    assert [s.node.spec.name for s in served if s.node] == ["spare", "spare"]
    assert served[0].ttft_s > served[1].total_s


@pytest.mark.parametrize(
    ("kind", "prompt_tokens", "censored", "waited_ms"),
    [("kill", 7000, True, 5000.0), ("silent", 7000, True, 9750.0), ("kill", 100, False, 100.0)],
)
def test_a_lost_node_teaches_how_long_it_was_waited_for(
    kind: str, prompt_tokens: int, censored: bool, waited_ms: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an answer that had begun, its first token and the time between the others too."""
    taught: list[Observation] = []
    monkeypatch.setattr(LearnedLatency, "record", lambda _, observation: taught.append(observation))
    play(fleet_of(faulty((5.0, 60.0, kind, 1.0))), [Recorded(0.0, prompt_tokens, 400)], "tidegate")
    (lost,) = [o for o in taught if o.outcome is Outcome.FAILED]
    assert lost.censored is censored
    assert lost.actual_ttft_ms == pytest.approx(waited_ms)
    if not censored:
        assert lost.output_tokens == 50
        assert lost.actual_tpot_ms == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("rtt_s", "sent_s"), [(2.0, 5.0), (8.0, 8.4)], ids=["on the node", "on its way there"]
)
def test_a_node_that_was_silent_does_not_work_for_who_gave_it_up(rtt_s: float, sent_s: float) -> None:
    """With a round trip of 8 s it is given up at 12 s, and what was sent at 8.4 s arrives at 12.4 s."""
    node = {**faulty((3.0, 20.0, "silent", 1.0)), "rtt_ms": [rtt_s * 1000, 0.0]}
    trace = [Recorded(0.0, 100, 1), Recorded(sent_s, 7000, 5), Recorded(24.0, 100, 1)]
    _, lost, served = play(fleet_of(node), trace, "tidegate")
    assert lost.node is None
    assert served.ttft_s == pytest.approx(rtt_s + 0.1)


def test_who_waited_pays_for_what_it_really_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    settled: list[float] = []
    monkeypatch.setattr(AdmissionQueue, "settle", lambda _, ticket, tokens: settled.append(tokens))
    play(fleet_of(LONE), [Recorded(0.0, 100, 20), Recorded(0.0, 200, 7)], "tidegate")
    assert settled == [207.0]


def test_crowding_is_learned_of_what_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each attempt, with the plan that held then: the second one waits, the first goes twice."""
    sent: list[Plan] = []
    told: list[Plan] = []
    send, decided = Gateway.send, Crowding.decided

    def sending(gateway: Gateway, asked: Asked, plan: Plan, ticket: Ticket | None = None) -> Try:
        sent.append(plan)
        return send(gateway, asked, plan, ticket)

    def telling(crowding: Crowding, plan: Plan) -> None:
        told.append(plan)
        decided(crowding, plan)

    monkeypatch.setattr(Gateway, "send", sending)
    monkeypatch.setattr(Crowding, "decided", telling)
    trace = [SLOW_TO_BEGIN, Recorded(0.1, 7000, 5)]
    play(fleet_of(faulty((1.0, 0.5, "kill", 1.0)), SPARE), trace, "tidegate")
    assert len(sent) == 3
    assert told == sent


@pytest.fixture
def bounces(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Node and how many wait there, as gateways are told with each bounce."""
    told: list[tuple[str, int]] = []
    bounced = Fleet.bounced

    def telling(fleet: Fleet, node_id: str, key: AttemptKey, queued: int) -> None:
        told.append((node_id, queued))
        bounced(fleet, node_id, key, queued)

    monkeypatch.setattr(Fleet, "bounced", telling)
    return told


# A millisecond away, and the second gateway does not know yet of the first one's request.
FULL = {"queue_limit": 0, "rtt_ms": [1.0, 0.0]}
AT_ONCE = [Recorded(0.0, 100, 20), Recorded(0.0003, 100, 1)]


def test_a_request_that_full_nodes_bounced_waits_for_them(bounces: list[tuple[str, int]]) -> None:
    """There is no other node."""
    fleet = fleet_of({**LONE, **FULL}, **PATIENT, gateways={"replicas": 2})
    first, second = play(fleet, AT_ONCE, "tidegate")
    assert second.node is not None
    assert second.ttft_s > first.total_s
    assert bounces == [("edge", 0)]


def test_a_silent_node_bounces_nobody(bounces: list[tuple[str, int]]) -> None:
    silent = faulty((0.0006, 1.0, "silent", 1.0))
    fleet = fleet_of({**silent, **FULL}, **PATIENT, gateways={"replicas": 2})
    assert all(s.node is not None for s in play(fleet, AT_ONCE, "tidegate"))
    assert not bounces


def test_who_waits_is_looked_at_when_a_node_is_lost() -> None:
    """It waits for the cheaper node; once that is gone it goes to the other at once."""
    trace = [Recorded(0.0, 100, 30), Recorded(0.2, 100, 5)]
    _, served = play(fleet_of(faulty((1.1, 50.0, "kill", 1.0)), SPARE, **PATIENT), trace, "tidegate")
    assert served.node is not None
    assert served.node.spec.name == "spare"
    assert served.ttft_s == pytest.approx(1.1 - 0.2 + 0.1)


@pytest.mark.parametrize("for_s", [4.0 + 0.1 * n for n in range(40)])
def test_a_node_that_was_quiet_for_about_too_long_is_not_lost_for_good(for_s: float) -> None:
    slow_link = {
        **LONE,
        "rtt_ms": [800.0, 0.0],
        "failures": [{"at_s": 5.05, "for_s": for_s, "kind": "silent"}],
    }
    *_, last = play(fleet_of(slow_link), [Recorded(0.0, 100, 4), Recorded(40.0, 100, 4)], "tidegate")
    assert last.node is not None
