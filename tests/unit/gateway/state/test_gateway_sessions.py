"""Where a session's last turn ran, and the strictest data class it ever had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from gateway_fakes import Clock

from gateway.dispatch import DataClasses
from gateway.state import SessionRecord, Sessions
from gateway.state.sessions import REPORTED_AFTER_S
from tidegate.routing.domain import ClassRule, SessionHint

CLASSES = DataClasses([("public", ClassRule()), ("internal", ClassRule()), ("restricted", ClassRule())])
HINT = SessionHint("n1", "digest", 40, "boot", 2)
FRESH = replace(HINT, fresh=True)


def sessions(key: bytes = b"k" * 32, limit: int = 100, clock: Callable[[], float] = lambda: 0.0) -> Sessions:
    return Sessions(key, clock, stricter=CLASSES.stricter, limit=limit)


def test_a_name_hides_the_id_and_tells_tenants_and_fleets_apart() -> None:
    mine = sessions()
    name = mine.name("acme", "chat-1")
    assert "chat" not in name
    assert name == sessions().name("acme", "chat-1")
    others = {
        mine.name("acme", "chat-2"),
        mine.name("other", "chat-1"),
        sessions(b"x" * 32).name("acme", "chat-1"),
    }
    assert len({name, *others}) == 4


def test_a_hint_is_known_once_a_turn_has_finished() -> None:
    s = sessions()
    s.put("a", None, "internal")
    assert s.hint("a") is None
    assert s.data_class("a") == "internal"
    s.put("a", HINT, "internal")
    assert s.hint("a") == FRESH
    s.put("a", None, "internal")  # the next turn starts: where the last one ran is kept
    assert s.hint("a") == FRESH


@pytest.mark.parametrize("order", [("restricted", "public"), ("public", "restricted")])
def test_the_strictest_class_stays_in_whatever_order_turns_end(order: tuple[str, str]) -> None:
    s = sessions()
    for data_class in order:
        s.put("a", HINT, data_class)
    assert s.data_class("a") == "restricted"
    assert s.take_unsent()[-1].data_class == "restricted"


@pytest.mark.parametrize("sent_before", [True, False])
def test_what_another_replica_saw_never_loosens_a_session(sent_before: bool) -> None:
    s = sessions()
    s.put("a", HINT, "restricted")
    if sent_before:
        s.take_unsent()
    s.learn(SessionRecord("a", "n2", "digest", 10, "public"))
    assert s.data_class("a") == "restricted"
    assert s.hint("a") == (SessionHint("n2", "digest", 10) if sent_before else FRESH)


def test_a_stricter_class_of_another_replica_counts_though_our_turn_is_newer() -> None:
    s = sessions()
    s.put("a", HINT, "public")
    s.learn(SessionRecord("a", "n2", "digest", 10, "restricted"))
    assert s.data_class("a") == "restricted"
    assert s.hint("a") == FRESH
    assert s.take_unsent() == (SessionRecord("a", "n1", "digest", 40, "restricted", "boot", 2),)


def test_a_class_that_only_another_replica_knows_counts_as_the_strictest() -> None:
    s = sessions()
    s.put("a", HINT, "restricted")
    s.learn(SessionRecord("a", "n1", "digest", 40, "top-secret"))
    assert s.data_class("a") == "top-secret"


def test_least_recently_used_sessions_fall_out() -> None:
    s = sessions(limit=2)
    s.put("a", HINT, "")
    s.put("b", HINT, "")
    assert s.hint("a") == FRESH  # touched: b is now the older one
    s.put("c", HINT, "")
    assert s.hint("b") is None
    assert s.hint("a") == FRESH
    assert len(s.take_unsent()) == 2


def test_records_that_could_not_be_sent_come_again_unless_newer_ones_did() -> None:
    s = sessions()
    s.put("a", HINT, "")
    s.put("b", HINT, "")
    taken = s.take_unsent()
    assert s.take_unsent() == ()
    newer = SessionHint("n9", "digest", 99)
    s.put("a", newer, "")
    s.put_back(taken)
    assert {r.session: r.node_id for r in s.take_unsent()} == {"a": "n9", "b": "n1"}


def test_a_turn_is_fresh_until_its_node_has_told_what_it_holds(clock: Clock) -> None:
    s = sessions(clock=clock)
    s.put("a", HINT, "")
    clock.advance(REPORTED_AFTER_S / 2)
    for record in s.take_unsent():
        s.learn(record)  # the store gives back what it was told
    assert s.hint("a") == FRESH
    s.put("b", HINT, "")
    s.put("a", None, "")  # the next turn began
    clock.advance(REPORTED_AFTER_S / 2)
    assert (s.hint("a"), s.hint("b")) == (HINT, FRESH)
    clock.advance(REPORTED_AFTER_S / 2)
    assert s.hint("b") == HINT
    s.learn(SessionRecord("c", "n1", "digest", 40, "", "boot", 2))
    assert s.hint("c") == HINT
