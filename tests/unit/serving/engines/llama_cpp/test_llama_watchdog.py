"""The watchdog's rhythm, on a clock of numbers."""

from serving.engines.llama_cpp.watchdog import Watchdog

LIMIT_S = 2.0


def ended_at(begins_s: float, last_step_s: float, *, wakes_late_s: float = 0.0) -> float:
    """When a child is ended that has work from `begins_s` on and makes its last step at `last_step_s`."""
    watchdog, now_s = Watchdog(LIMIT_S), 0.0
    while now_s < 100.0:
        steps_s = last_step_s if now_s >= last_step_s else now_s
        ends, pause_s = watchdog.look(None if now_s < begins_s else now_s - max(begins_s, steps_s))
        if ends:
            return now_s
        now_s += pause_s + wakes_late_s
    raise AssertionError("it was never ended")


def test_a_child_is_ended_just_after_the_limit_whenever_its_last_step_was() -> None:
    for tenth in range(100):
        last_step_s = 5.0 + tenth / 10.0
        late_s = ended_at(3.0, last_step_s) - last_step_s
        assert LIMIT_S <= late_s <= LIMIT_S * 1.1


def test_a_child_that_never_makes_a_step_is_ended_too() -> None:
    assert 3.7 + LIMIT_S <= ended_at(3.7, 0.0) <= 3.7 + LIMIT_S * 1.1


def test_one_look_after_a_pause_of_this_process_ends_nothing() -> None:
    watchdog = Watchdog(LIMIT_S)
    ends, pause_s = watchdog.look(60.0)
    assert not ends
    assert pause_s < LIMIT_S / 10
    assert watchdog.look(0.01) == (False, LIMIT_S - 0.01)
    assert not watchdog.look(LIMIT_S)[0], "the suspicion was not forgotten"


def test_an_idle_child_is_looked_at_once_per_limit() -> None:
    assert Watchdog(LIMIT_S).look(None) == (False, LIMIT_S)
