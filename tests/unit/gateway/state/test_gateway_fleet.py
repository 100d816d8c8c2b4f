"""The fleet as one replica knows it: health follows time, work counts until it is acknowledged."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gateway_fakes import CLOUD, EDGE, Clock, add_ready, announcement, node_record, work

from gateway.state import Fleet
from tidegate.routing.domain import AttemptKey, CacheDelta, Health, InFlight, NodeLoad
from tidegate.routing.prefix import names_digest

BOUNCED = AttemptKey("bounced", 1)


@pytest.fixture
def fleet(clock: Clock) -> Fleet:
    return Fleet(clock, suspect_after_s=4.5, lost_after_s=5.5, stalled_after_s=10.0)


def health(fleet: Fleet, node_id: str = "n1") -> Health:
    return fleet.snapshot().by_id[node_id].health


def test_a_node_is_ready_only_after_a_heartbeat_and_a_round_trip(fleet: Fleet) -> None:
    fleet.register(announcement("n1"), EDGE, 1)
    assert health(fleet) is Health.NOT_READY
    fleet.heartbeat("n1", NodeLoad())
    assert health(fleet) is Health.NOT_READY
    fleet.rtt("n1", 2.0)
    assert health(fleet) is Health.READY


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (NodeLoad(ready=False), Health.NOT_READY),
        (NodeLoad(draining=True), Health.DRAINING),
        (NodeLoad(draining=True, ready=False), Health.DRAINING),
        (NodeLoad(running=1, progress_age_ms=10_001.0), Health.STALLED),
        (NodeLoad(running=1, progress_age_ms=9_999.0), Health.READY),
        (NodeLoad(running=0, progress_age_ms=60_000.0), Health.READY),
    ],
)
def test_health_follows_the_heartbeat(fleet: Fleet, load: NodeLoad, expected: Health) -> None:
    add_ready(fleet, "n1")
    fleet.heartbeat("n1", load)
    assert health(fleet) is expected


def test_silence_makes_suspect_then_lost_and_a_word_makes_ready_again(fleet: Fleet, clock: Clock) -> None:
    add_ready(fleet, "n1")
    clock.advance(4.4)
    fleet.refresh()
    assert health(fleet) is Health.READY
    clock.advance(0.2)
    fleet.refresh()
    assert health(fleet) is Health.SUSPECT
    assert fleet.silent_nodes() == ()
    clock.advance(1.0)
    ((node_id, silent_s),) = fleet.silent_nodes()
    assert (node_id, silent_s) == ("n1", pytest.approx(5.6))
    assert fleet.silent_ms("n1") == pytest.approx(5600.0)
    fleet.heard("n1")
    fleet.refresh()
    assert health(fleet) is Health.READY
    assert fleet.silent_nodes() == ()


def test_silence_while_this_process_stood_still_does_not_count(fleet: Fleet, clock: Clock) -> None:
    add_ready(fleet, "n1")
    add_ready(fleet, "n2")
    clock.advance(2.0)
    clock.advance(60.0)  # a paused machine
    fleet.heard("n2")  # its word was read first
    fleet.overslept(60.0)
    assert fleet.silent_nodes() == ()
    assert fleet.silent_ms("n1") == pytest.approx(2000.0)
    assert fleet.silent_ms("n2") == 0.0
    clock.advance(3.6)
    assert [node_id for node_id, _ in fleet.silent_nodes()] == ["n1"]  # real silence counts as before


def test_a_stalled_node_is_left_alone_for_a_while(fleet: Fleet, clock: Clock) -> None:
    add_ready(fleet, "n1")
    add_ready(fleet, "n2")
    waiting_since_s = clock()
    clock.advance(3.0)
    fleet.mark_stalled("n1", waiting_since_s, 10.0)
    assert health(fleet) is Health.STALLED
    clock.advance(10.1)
    fleet.heard("n1")
    fleet.refresh()
    assert health(fleet) is Health.READY


def test_a_node_that_worked_for_others_meanwhile_is_not_stalled(fleet: Fleet, clock: Clock) -> None:
    add_ready(fleet, "n1")
    add_ready(fleet, "n2")
    waiting_since_s = clock()
    clock.advance(1.0)
    fleet.delivered("n1")
    fleet.mark_stalled("n1", waiting_since_s, 10.0)
    assert health(fleet) is Health.READY


def test_attempts_of_one_stall_pause_a_node_once_and_repeated_stalls_longer(
    fleet: Fleet, clock: Clock
) -> None:
    add_ready(fleet, "n1")
    add_ready(fleet, "n2")

    def pause_s() -> float:
        """How long the node stays out from now."""
        started_s = clock()
        while health(fleet) is Health.STALLED:
            clock.advance(0.5)
            fleet.heard("n1")
            fleet.heard("n2")
            fleet.refresh()
        return clock() - started_s

    for expected_s in (10.0, 20.0, 40.0):
        waiting_since_s = clock()
        clock.advance(3.0)
        for _ in range(6):
            fleet.mark_stalled("n1", waiting_since_s, 10.0)
        assert pause_s() == pytest.approx(expected_s, abs=0.5)
    fleet.delivered("n1")
    clock.advance(1.0)
    waiting_since_s = clock()
    clock.advance(3.0)
    fleet.mark_stalled("n1", waiting_since_s, 10.0)
    assert pause_s() == pytest.approx(10.0, abs=0.5)


@pytest.mark.parametrize(("nodes", "at_most"), [(1, 0), (2, 1), (3, 1), (5, 2)])
def test_never_more_than_half_of_the_nodes_are_left_alone(
    fleet: Fleet, clock: Clock, nodes: int, at_most: int
) -> None:
    for n in range(nodes):
        add_ready(fleet, f"n{n}")
    for n in range(nodes):
        fleet.mark_stalled(f"n{n}", clock() - 1.0, 10.0)
    assert sum(n.health is Health.STALLED for n in fleet.snapshot().nodes) == at_most


def test_work_counts_until_the_node_acknowledges_it(fleet: Fleet) -> None:
    add_ready(fleet, "n1")
    fleet.sent("n1", work("a", data=b"x" * 400, max_tokens=10, work_seq=1))
    fleet.sent("n1", work("b", data=b"x" * 40, max_tokens=20, work_seq=2))
    assert fleet.snapshot().by_id["n1"].in_flight == InFlight(2, 110, 30)
    fleet.heartbeat("n1", NodeLoad(running=1, last_work_seq=1))
    assert fleet.snapshot().by_id["n1"].in_flight == InFlight(1, 10, 20)
    fleet.ended("n1", AttemptKey("b", 1))
    assert fleet.snapshot().by_id["n1"].in_flight == InFlight()


def test_ended_work_is_taken_off_the_last_heartbeat(fleet: Fleet) -> None:
    add_ready(fleet, "n1")
    fleet.sent("n1", work("a", data=b"x" * 400, max_tokens=10, work_seq=1))
    busy = NodeLoad(running=1, pending_prefill_tokens=100, pending_decode_tokens=10, last_work_seq=1)
    fleet.heartbeat("n1", busy)
    fleet.prefilled("n1", AttemptKey("a", 1))
    load = fleet.snapshot().by_id["n1"].load
    assert (load.running, load.pending_prefill_tokens) == (1, 0)
    fleet.ended("n1", AttemptKey("a", 1))
    load = fleet.snapshot().by_id["n1"].load
    assert (load.running, load.queued, load.pending_decode_tokens) == (0, 0, 0)
    fleet.ended("n1", AttemptKey("a", 1))  # a second word on the same attempt changes nothing
    assert fleet.snapshot().by_id["n1"].load == load


def test_a_bounce_tells_of_the_queue_before_the_next_heartbeat_does(fleet: Fleet) -> None:
    add_ready(fleet, "n1")
    fleet.heartbeat("n1", NodeLoad(running=1))
    fleet.bounced("n1", BOUNCED, 3)
    load = fleet.snapshot().by_id["n1"].load
    assert (load.running, load.queued) == (4, 3)
    fleet.bounced("n1", BOUNCED, 0)  # takes nothing off
    assert fleet.snapshot().by_id["n1"].load == load
    fleet.bounced("unknown", BOUNCED, 3)


def test_bounced_work_takes_nothing_off_what_a_heartbeat_counted(fleet: Fleet) -> None:
    """The heartbeat that acknowledged it counted three others."""
    add_ready(fleet, "n1")
    busy = NodeLoad(running=3, pending_decode_tokens=30, last_work_seq=1)
    for ends in (False, True):
        fleet.sent("n1", work("a", max_tokens=10, work_seq=1))
        fleet.heartbeat("n1", busy)
        if not ends:
            fleet.bounced("n1", AttemptKey("a", 1), None)
        fleet.ended("n1", AttemptKey("a", 1))
        load = fleet.snapshot().by_id["n1"].load
        # The control: work that ran there is taken off.
        assert (load.running, load.pending_decode_tokens) == ((2, 20) if ends else (3, 30))


def test_work_that_bounced_before_it_was_acknowledged_is_no_longer_under_way(fleet: Fleet) -> None:
    add_ready(fleet, "n1")
    fleet.sent("n1", work("a", max_tokens=10, work_seq=1))
    assert fleet.snapshot().by_id["n1"].in_flight.requests == 1
    fleet.bounced("n1", AttemptKey("a", 1), 0)
    assert fleet.snapshot().by_id["n1"].in_flight.requests == 0


def test_a_node_without_a_queue_is_full_after_a_bounce(fleet: Fleet) -> None:
    add_ready(fleet, "n1")
    fleet.bounced("n1", BOUNCED, 0)
    assert fleet.snapshot().by_id["n1"].active == 4
    fleet.heartbeat("n1", NodeLoad(running=1))
    assert fleet.snapshot().by_id["n1"].active == 1


def test_round_trips_are_smoothed_from_the_first_sample_on(fleet: Fleet) -> None:
    fleet.register(announcement("n1"), EDGE, 1)
    fleet.rtt("n1", 40.0)
    assert fleet.snapshot().by_id["n1"].rtt_ms == 40.0
    fleet.rtt("n1", 80.0)
    assert fleet.snapshot().by_id["n1"].rtt_ms == 50.0


def test_a_lost_link_removes_the_node_but_not_its_newer_link(fleet: Fleet) -> None:
    add_ready(fleet, "n1", link_epoch=1)
    add_ready(fleet, "n1", link_epoch=2)
    fleet.remove("n1", 1)
    assert "n1" in fleet.snapshot().by_id
    fleet.remove("n1", 2)
    assert fleet.snapshot().nodes == ()


def test_register_tells_whether_the_process_is_a_new_one(fleet: Fleet) -> None:
    assert not fleet.register(announcement("n1", boot_id="b1"), EDGE, 1)
    assert not fleet.register(announcement("n1", boot_id="b1"), EDGE, 2)
    assert fleet.register(announcement("n1", boot_id="b2"), EDGE, 3)


def test_the_caches_of_a_node_show_in_the_snapshot(fleet: Fleet) -> None:
    add_ready(fleet, "n1")
    names = tuple(bytes([i]) * 16 for i in range(4))
    assert not fleet.snapshot().by_id["n1"].names_blocks
    assert fleet.cache_report("n1", CacheDelta(held=names[:3], digest=names_digest(names[:3]), full=True))
    assert fleet.snapshot().by_id["n1"].names_blocks
    assert fleet.snapshot().by_id["n1"].prefix_blocks == frozenset(names[:3])
    assert fleet.cache_report("n1", CacheDelta(names[3:], names[:1], names_digest(names[1:])))
    assert fleet.snapshot().by_id["n1"].prefix_blocks == frozenset(names[1:])
    assert not fleet.cache_report("n1", CacheDelta(names[:1], (), digest=1))
    assert fleet.cache_report("unknown", CacheDelta(digest=1))


def test_nodes_of_other_replicas_are_seen_but_never_as_linked_here(fleet: Fleet) -> None:
    add_ready(fleet, "n1")
    fleet.learn_remote(
        [node_record("gw-2", "n1"), node_record("gw-2", "n2"), node_record("gw-1", "n3")], "gw-1"
    )
    snapshot = fleet.snapshot()
    assert set(snapshot.by_id) == {"n1", "n2"}
    assert snapshot.by_id["n1"].linked_here
    assert not snapshot.by_id["n2"].linked_here
    assert [n.node_id for n in fleet.linked()] == ["n1"]
    fleet.learn_remote([], "gw-1")
    assert set(fleet.snapshot().by_id) == {"n1"}


def test_a_snapshot_does_not_change_and_is_shared_until_something_does(fleet: Fleet) -> None:
    add_ready(fleet, "n1")
    add_ready(fleet, "n2", CLOUD)
    before = fleet.snapshot()
    assert fleet.snapshot() is before
    version = fleet.version
    fleet.heartbeat("n1", NodeLoad(running=3))
    after = fleet.snapshot()
    assert fleet.version > version
    assert before.by_id["n1"].load.running == 0
    assert after.by_id["n1"].load.running == 3
    assert after.by_id["n2"] is before.by_id["n2"]  # what did not change is not built again


def test_words_of_unknown_nodes_are_ignored(fleet: Fleet) -> None:
    fleet.heard("ghost")
    fleet.heartbeat("ghost", NodeLoad())
    fleet.rtt("ghost", 1.0)
    fleet.sent("ghost", work())
    fleet.prefilled("ghost", AttemptKey("r1", 1))
    fleet.ended("ghost", AttemptKey("r1", 1))
    fleet.delivered("ghost")
    fleet.mark_stalled("ghost", 0.0, 1.0)
    assert fleet.snapshot().nodes == ()
    assert fleet.silent_ms("ghost") == 0.0


def test_work_on_a_warm_node_counts_only_what_is_left_to_compute(fleet: Fleet) -> None:
    add_ready(fleet, "n1")
    names = (b"a" * 16, b"b" * 16)
    fleet.cache_report("n1", CacheDelta(held=names, digest=names_digest(names)))
    warm = replace(work("a", data=b"x" * 1200, max_tokens=10, work_seq=1), prefix_hashes=(*names, b"c" * 16))
    fleet.sent("n1", warm)
    assert fleet.snapshot().by_id["n1"].in_flight == InFlight(1, 300 - 2 * 128, 10)
    # The control: the same bytes under names that the node does not hold.
    cold = replace(work("b", data=b"x" * 1200, max_tokens=10, work_seq=2), prefix_hashes=(b"d" * 16,))
    fleet.sent("n1", cold)
    assert fleet.snapshot().by_id["n1"].in_flight == InFlight(2, 44 + 300, 20)


def test_who_left_is_remembered_for_a_while_until_it_is_back(fleet: Fleet, clock: Clock) -> None:
    add_ready(fleet, "n1")
    add_ready(fleet, "n2")
    variants = fleet.snapshot().by_id["n1"].announcement.variants
    assert not fleet.snapshot().departed
    fleet.remove("n1", 1)
    fleet.remove("n2", 1)
    assert [kind.variants for kind in fleet.snapshot().departed] == [variants, variants]
    fleet.register(announcement("n2"), EDGE, 2)
    assert len(fleet.snapshot().departed) == 1
    clock.advance(60.1)
    fleet.heartbeat("n2", NodeLoad())
    fleet.refresh()
    assert not fleet.snapshot().departed
