"""How many sequences run at once, on virtual time and a device whose steps take what the test says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from serving.engines.llama_cpp.tuning.slots import SlotPolicy, StepShape

MOST = 8
BOUND_MS = 200.0


PROMPT_STEPS = 6
Curve = Callable[[int], float]


def shape(answers: int) -> float:
    """Undisturbed, one answer takes 15 ms a token and 8 take 85."""
    return 5.0 + 10.0 * answers


def policy(known: Curve = shape, bound_ms: float = BOUND_MS) -> SlotPolicy:
    return SlotPolicy(MOST, bound_ms, StepShape.of_curve(known, MOST))


@dataclass(slots=True)
class Device:
    """Runs as many answers as wanted and allowed, each of so many tokens; `busy` slows all steps alike."""

    policy: SlotPolicy
    wanted: int = MOST
    tokens: int = 60
    busy: float = 1.0
    curve: Curve = shape
    now_s: float = 0.0
    left: list[int] = field(default_factory=list)
    joining: list[int] = field(default_factory=list)
    changes: list[tuple[float, int]] = field(default_factory=list)

    def step_ms(self, answers: int) -> float:
        return self.busy * self.curve(answers)

    def step(self) -> None:
        slots = self.policy.slots
        while len(self.left) + len(self.joining) < min(self.wanted, slots):
            # Answers that began together do not end together; a prompt takes a few steps' time.
            self.joining.append(PROMPT_STEPS + 3 * len(self.joining))
        self.joining = [left - 1 for left in self.joining]
        self.left += [self.tokens for left in self.joining if left == 0]
        self.joining = [left for left in self.joining if left]
        ms = self.step_ms(len(self.left))
        self.now_s += ms / 1000.0
        if self.left:
            self.policy.step(len(self.left), ms, self.now_s)
        self.left = [left - 1 for left in self.left if left > 1]
        if self.policy.slots != slots:
            self.changes.append((self.now_s, self.policy.slots))

    def run(self, seconds: float) -> int:
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.step()
        return self.policy.slots


def device(**about: object) -> Device:
    return Device(policy(), **about)  # type: ignore[arg-type]


def test_an_undisturbed_device_keeps_all_its_slots() -> None:
    quiet = device()
    assert quiet.run(600.0) == MOST
    assert quiet.changes == []


@pytest.mark.parametrize("busy", [2.5, 4.0, 6.0, 7.9, 13.0])
def test_others_on_the_processor_cost_slots_until_answers_keep_their_pace(busy: float) -> None:
    taken = device()
    taken.run(30.0)
    taken.busy = busy
    slots = taken.run(60.0)
    assert 1 <= slots < MOST
    assert taken.step_ms(slots) <= BOUND_MS < taken.step_ms(slots + 1)
    # Halves at most, and not one slot after the other.
    assert len(taken.changes) <= 3


def test_without_a_bound_that_is_missed_the_same_load_changes_nothing() -> None:
    taken = Device(policy(bound_ms=1e9), busy=6.0)
    assert taken.run(300.0) == MOST
    assert taken.step_ms(MOST) > BOUND_MS


def test_one_sequence_always_runs() -> None:
    swamped = device(busy=50.0)
    assert swamped.run(300.0) == 1
    assert swamped.step_ms(1) > BOUND_MS


@pytest.mark.parametrize("known", [lambda n: 40.0 + 2.0 * n, shape])
def test_no_slot_is_given_up_where_that_makes_nothing_faster(known: Curve) -> None:
    """A model that is large for its device: nearly all of a step is reading the weights. Where the curve on
    record says otherwise, that is learned."""
    large = Device(policy(known), busy=10.0, curve=lambda n: 40.0 + 2.0 * n)
    assert large.run(900.0) == MOST
    assert large.step_ms(1) > BOUND_MS


def test_slots_come_back_when_the_others_are_gone() -> None:
    taken = device(busy=10.0)
    assert taken.run(60.0) == 1
    taken.busy = 1.0
    assert taken.run(30.0) == MOST
    assert [slots for _, slots in taken.changes[-3:]] == [2, 4, MOST]


def test_a_short_disturbance_costs_nothing() -> None:
    taken = device()
    for _ in range(50):
        taken.busy = 6.0
        taken.run(0.5)
        taken.busy = 1.0
        taken.run(2.0)
    assert taken.changes == []


def test_running_answers_are_no_reason_for_fewer_slots_than_new_ones_need() -> None:
    long = device(tokens=10_000)
    long.run(5.0)
    long.busy = 4.0
    long.run(120.0)
    # All eight run on and miss the bound: that says nothing about the four.
    assert len(long.left) == MOST
    assert [slots for _, slots in long.changes] == [4]
    long.busy = 1.0
    long.run(30.0)
    assert long.policy.slots == MOST


def test_at_the_edge_of_the_bound_slots_do_not_alternate() -> None:
    edge = device(busy=BOUND_MS / shape(4) * 0.999)
    edge.run(3600.0)
    assert len(edge.changes) < 25
    minutes = [at_s for at_s, _ in edge.changes]
    assert sum(at_s > 1800.0 for at_s in minutes) <= len(minutes) / 2


def test_a_wrong_shape_is_found_out_by_trying() -> None:
    # Many answers take longer than is known, and then fewer do.
    other = device(busy=2.0, curve=lambda n: 5.0 + 18.0 * n)
    first = other.run(60.0)
    assert other.step_ms(first) <= BOUND_MS < other.step_ms(first + 1)
    steep = Device(policy(lambda n: 10.0 * n**2), busy=1.5)
    steep.policy.slots = 2
    assert steep.run(1800.0) >= 6


def test_after_a_long_rest_nothing_is_held_against_the_device() -> None:
    taken = device(busy=10.0)
    assert taken.run(60.0) == 1
    taken.left, taken.joining = [], [1]
    taken.now_s += 30.0
    taken.step()
    assert taken.policy.slots == 1
    taken.left, taken.joining = [], [1]
    taken.now_s += 61.0
    taken.step()
    assert taken.policy.slots == MOST
    assert "nothing to do" in taken.policy.reason


def test_a_few_answers_on_a_slow_device_cost_only_slots_that_were_measured() -> None:
    few = device(wanted=2, busy=4.0)
    assert few.run(120.0) == MOST
    few.wanted = 5
    assert few.run(30.0) < 5
