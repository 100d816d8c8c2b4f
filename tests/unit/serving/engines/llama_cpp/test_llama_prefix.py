from __future__ import annotations

import random

import numpy as np
import pytest
from llama_fake_memory import FakeMemory, tokens

from serving.engines.llama_cpp.block_tree import NamedPositions, Tokens
from serving.engines.llama_cpp.prefix import Lease, PrefixCache, common_prefix

A, B, C, D = (bytes([n]) * 16 for n in range(4))
# One token in the fake memory's rows.
TOKEN_BYTES = 24


class Rig:
    """A cache over fake memory, with sequences that compute their prompts at once.

    Computing takes 1 ms a token, saving and restoring `move_ms`.
    """

    def __init__(self, slots: int, parked_tokens: int = 0, *, move_ms: float = 0.0) -> None:
        self.memory = FakeMemory(slots, move_ms=move_ms)
        self.cache = PrefixCache(
            slots,
            self.memory,
            park_bytes=parked_tokens * TOKEN_BYTES,
            ms_per_token=lambda: 1.0,
            clock=lambda: self.memory.now_ms / 1000.0,
        )

    def begin(
        self, prompt: Tokens, names: NamedPositions = (), tenant: str = "t", *, compute: int = -1
    ) -> Lease:
        lease = self.cache.take(prompt, tenant, names)
        held = self.memory.rows[lease.slot.index]
        assert held.tolist() == prompt[: lease.cached].tolist(), "exactly the prompt's own beginning"
        assert lease.cached < len(prompt), "the last token is always computed"
        if lease.leader is None:
            self.compute(lease, len(prompt) if compute < 0 else compute)
        return lease

    def compute(self, lease: Lease, upto: int) -> None:
        slot = lease.slot
        self.memory.compute(slot.index, slot.filled, slot.tokens[slot.filled : upto])
        slot.filled = max(slot.filled, upto)

    def end(self, lease: Lease, names: NamedPositions = ()) -> None:
        slot = lease.slot
        if slot.filled >= len(slot.tokens):
            self.cache.prefilled(slot, names)
        self.cache.release(slot, slot.tokens[: slot.filled], names)

    def run(self, prompt: Tokens, names: NamedPositions = (), tenant: str = "t") -> tuple[int, int]:
        """A whole sequence; (slot, cached)."""
        lease = self.begin(prompt, names, tenant)
        self.end(lease, names)
        return lease.slot.index, lease.cached


def text(seed: int, length: int) -> Tokens:
    return np.random.default_rng(seed).integers(0, 1000, length).astype(np.int32)


def joined(*parts: Tokens) -> Tokens:
    return np.concatenate(parts)


def test_common_prefix() -> None:
    assert common_prefix(tokens(1, 2, 3), tokens(1, 2, 4)) == 2
    assert common_prefix(tokens(1, 2), tokens(1, 2, 4)) == 2
    assert common_prefix(tokens(), tokens(1)) == 0


@pytest.mark.parametrize("parked_tokens", [0, 1000])
def test_an_idle_slot_is_continued_to_the_token(parked_tokens: int) -> None:
    rig = Rig(3, parked_tokens)
    assert rig.run(tokens(1, 2, 3, 4)) == (0, 0)
    assert rig.run(tokens(1, 2, 3, 4, 5, 6)) == (0, 4)
    assert rig.run(tokens(1, 2, 3, 4, 5, 6)) == (0, 5)
    assert rig.run(tokens(7, 2, 3)) == (1, 0)


def test_what_a_slot_held_is_parked_before_it_is_lost() -> None:
    first, second = text(1, 70), text(2, 70)
    for parked_tokens, cached in ((0, 0), (200, 64)):
        rig = Rig(1, parked_tokens)
        rig.run(first)
        assert rig.run(second) == (0, 0)
        assert rig.run(first) == (0, cached)


@pytest.mark.parametrize(("parked_tokens", "cached"), [(0, 0), (1000, 64)])
def test_what_idle_slots_lost_is_not_taken_for_held(parked_tokens: int, cached: int) -> None:
    rig, first = Rig(2, parked_tokens), text(1, 70)
    running = rig.begin(text(2, 40))
    rig.run(first, ((A, 32), (B, 64)))
    rig.cache.park_idle()
    for index in range(2):
        if index != running.slot.index:
            rig.memory.rows[index] = tokens()
    rig.cache.names.take_changes()
    rig.cache.forget_slots()
    assert running.slot.filled == 40, "what runs goes on"
    assert sorted(rig.cache.names.take_changes()[1]) == ([] if cached else [A, B])
    assert rig.run(first)[1] == cached


def test_a_shorter_prompt_does_not_destroy_a_longer_one() -> None:
    rig = Rig(1, 300)
    long = text(1, 128)
    rig.run(long)
    assert rig.run(joined(long[:32], text(2, 8)))[1] == 32
    assert rig.run(long)[1] == 112


def test_a_running_sequence_shares_what_it_has_computed() -> None:
    shared = text(1, 96)
    rig = Rig(3, 1000)
    running = rig.begin(joined(shared, text(2, 20)))
    other = rig.begin(joined(shared, text(3, 20)))
    assert (other.slot.index, other.cached, other.leader) == (1, 96, None)
    rig.end(running)
    rig.end(other)


def test_without_parking_slots_are_copied_whole() -> None:
    shared = text(1, 50)
    rig = Rig(2, 0)
    rig.begin(joined(shared, text(2, 20)))
    assert rig.begin(joined(shared, text(3, 20))).cached == 50


def test_a_burst_computes_its_common_prompt_once() -> None:
    shared = text(1, 100)
    rig = Rig(4, 2000)
    leader = rig.begin(joined(shared, text(2, 10)), compute=16)
    followers = [rig.begin(joined(shared, text(3 + n, 10))) for n in range(3)]
    assert [f.cached for f in followers] == [16, 16, 16]
    assert all(f.leader is leader.slot and f.shared == 100 for f in followers)
    assert [rig.cache.catch_up(f) for f in followers] == followers
    rig.compute(leader, 110)
    after = [rig.cache.catch_up(f) for f in followers]
    assert [(f.cached, f.leader) for f in after] == [(96, None)] * 3
    for lease in after:
        rig.compute(lease, 110)
        assert rig.memory.rows[lease.slot.index].tolist() == lease.slot.tokens.tolist()


def test_a_follower_takes_over_when_the_leader_leaves_early() -> None:
    shared = text(1, 100)
    rig = Rig(3, 2000)
    leader = rig.begin(joined(shared, text(2, 10)), compute=40)
    one, two = (rig.begin(joined(shared, text(3 + n, 10))) for n in range(2))
    rig.end(leader)
    one, two = rig.cache.catch_up(one), rig.cache.catch_up(two)
    assert (one.cached, one.leader) == (32, None)
    assert two.leader is one.slot
    rig.compute(one, 110)
    assert rig.cache.catch_up(two).cached == 96


def test_tenants_share_neither_slots_nor_parked_blocks_nor_running_ones() -> None:
    prompt = text(1, 64)
    rig = Rig(3, 1000)
    running = rig.begin(prompt, tenant="a")
    other = rig.begin(prompt, tenant="b", compute=10)
    assert (other.cached, other.leader) == (0, None)
    third = rig.begin(prompt, tenant="c")
    assert (third.cached, third.leader) == (0, None)
    for lease in (running, other, third):
        rig.end(lease)
    for seed in (5, 6, 7):
        rig.run(text(seed, 64), tenant="d")
    assert rig.run(prompt, tenant="e")[1] == 0
    assert rig.run(prompt, tenant="a")[1] == 48


def test_neighbours_of_busy_slots_are_preferred() -> None:
    rig = Rig(4, 1000)
    leases = [rig.begin(text(seed, 40)) for seed in range(4)]
    assert rig.cache.idle == 0
    for lease in leases[1:]:
        rig.end(lease)
    # Its own slot would be the last one, apart from the first, which is busy.
    lease = rig.begin(text(3, 40))
    assert (lease.slot.index, lease.cached) == (1, 32)


def test_names_are_held_from_the_position_on_that_they_stand_for() -> None:
    rig = Rig(1, 64)
    prompt = text(1, 64)
    names = ((A, 20), (B, 60))
    lease = rig.begin(prompt, names, compute=30)
    assert rig.cache.names.take_changes() == ([], [])
    rig.end(lease, names)
    assert rig.cache.names.take_changes() == ([A], [])
    rig.run(prompt, names)
    assert rig.cache.names.take_changes() == ([B], [])
    rig.run(text(2, 64), ((C, 64),))
    # Parked now: all blocks of the first prompt are there, and C lies in the slot.
    assert rig.cache.names.take_changes() == ([C], [])
    rig.run(text(3, 64), ((D, 64),))
    held, evicted = rig.cache.names.take_changes()
    assert held == [D]
    assert set(evicted) == {A, B}


def test_a_name_that_comes_and_goes_between_reports_is_not_reported() -> None:
    rig = Rig(1)
    rig.run(tokens(1, 2, 3), ((A, 3),))
    rig.run(tokens(4, 5, 6))
    assert rig.cache.names.take_changes() == ([], [])


@pytest.mark.parametrize("fault", ["cut_fails", "restore_fails", "not_cuttable"])
def test_memory_that_refuses_costs_reuse_but_nothing_else(fault: str) -> None:
    rig = Rig(2, 1000)
    rig.memory.cut_fails = fault == "cut_fails"
    rig.memory.restore_fails = fault == "restore_fails"
    rig.memory.cuttable = fault != "not_cuttable"
    for seed in (1, 2, 3, 1, 2):
        rig.run(joined(text(seed, 40), text(9, 5)))
    assert rig.run(joined(text(3, 40), text(8, 5)))[1] in (0, 40)


@pytest.mark.parametrize("parked_tokens", [0, 48, 400, 4000])
def test_whatever_happens_a_slot_holds_its_own_prompt(parked_tokens: int) -> None:
    rng = random.Random(parked_tokens)
    rig = Rig(4, parked_tokens)
    open_leases: list[Lease] = []
    reused = 0
    for _ in range(600):
        if open_leases and (len(open_leases) == 4 or rng.random() < 0.4):
            lease = open_leases.pop(rng.randrange(len(open_leases)))
            rig.end(lease)
        else:
            parts = [text(rng.randrange(3), 40), text(rng.randrange(3), 30), text(rng.randrange(9), 9)]
            prompt = joined(*parts[: rng.randint(1, 3)])
            lease = rig.begin(prompt, tenant=rng.choice("ab"), compute=rng.randint(0, len(prompt)))
            reused += lease.cached
            open_leases.append(lease)
        for at, lease in enumerate(open_leases):
            if lease.leader is not None:
                open_leases[at] = lease = rig.cache.catch_up(lease)
            if lease.leader is None:
                rig.compute(lease, rng.randint(lease.slot.filled, len(lease.slot.tokens)))
        for slot in rig.cache.slots:
            held = rig.memory.rows[slot.index]
            assert held[: slot.filled].tolist() == slot.tokens[: slot.filled].tolist()
        if rig.cache.tree is not None:
            assert rig.cache.tree.used_bytes <= parked_tokens * TOKEN_BYTES
    assert reused > 1000


def test_what_public_work_began_stays_public_when_other_work_goes_on_with_it() -> None:
    bench = Rig(1, parked_tokens=1024)
    shared, secret = text(1, 48), text(2, 32)
    for prompt, public in ((shared, True), (joined(shared, secret), False), (text(3, 48), False)):
        lease = bench.cache.take(prompt, "t", (), public=public)
        bench.compute(lease, len(prompt))
        bench.end(lease)
    bench.cache.park_idle()
    assert bench.cache.tree is not None
    assert sorted(node.key for node in bench.cache.tree.public()) == sorted(
        shared[at : at + 16].tobytes() for at in (0, 16, 32)
    )


def slots_that_move(move_ms: float) -> tuple[Rig, list[int]]:
    """What six prompts in one slot find, every other one with the same beginning."""
    rig = Rig(1, 1000, move_ms=move_ms)
    first = text(1, 160)
    prompts = (first, joined(first, text(2, 20)), text(3, 160), joined(first, text(4, 20)), text(3, 160))
    prompts += (joined(first, text(5, 20)),)
    return rig, [rig.run(prompt)[1] for prompt in prompts]


def test_states_are_moved_where_that_costs_less_than_computing() -> None:
    assert slots_that_move(0.1)[1] == [0, 160, 0, 160, 144, 160]


def test_states_are_not_moved_where_computing_costs_less() -> None:
    rig, cached = slots_that_move(3.0)
    # What lies in the slot is gone on with; one move each way is tried, to know what it costs.
    assert cached == [0, 160, 0, 160, 0, 0]
    assert rig.memory.saves == 1


@pytest.mark.parametrize(("kept", "move_ms", "saves"), [(144, 0.2, 1), (0, 0.2, 2), (0, 0.5, 1)])
def test_a_slot_is_not_saved_for_what_stays_in_it_nor_as_if_all_were_wanted_again(
    kept: int, move_ms: float, saves: int
) -> None:
    """At a fifth of computing saving is worth it for a whole prompt that would be lost, not for its end; at
    half of it not even for that."""
    rig, first = Rig(1, 1000, move_ms=move_ms), text(1, 176)
    rig.run(text(9, 160))
    rig.run(first)  # the one before it is saved: what that costs is learned
    assert rig.memory.saves == 1
    rig.run(joined(first[:kept], text(2, 32)))
    assert rig.memory.saves == saves


def test_what_is_kept_for_good_or_for_later_is_saved_at_any_cost() -> None:
    rig, _ = slots_that_move(3.0)
    rig.cache.park_idle()
    assert rig.memory.saves == 2
    fresh = text(9, 64)
    rig.run(fresh)
    assert rig.cache.pin(rig.cache.slots[0], ["t"]) == 64


@pytest.mark.parametrize(("move_ms", "waits"), [(0.1, True), (3.0, False)])
def test_nobody_waits_for_another_ones_prefix_that_would_be_dearer_to_bring(
    move_ms: float, waits: bool
) -> None:
    rig, shared = Rig(2, 1000, move_ms=move_ms), text(1, 160)
    for seed in (7, 8, 9, 7):
        # Two slots and three prompts: one is parked, and brought back.
        rig.run(text(seed, 160))
    leader = rig.begin(joined(shared, text(4, 8)), compute=16)
    follower = rig.cache.take(joined(shared, text(5, 8)), "t", ())
    assert (follower.leader is leader.slot) == waits


@pytest.mark.parametrize("parked_tokens", [0, 320, 100_000])
def test_room_is_what_new_prompts_may_have_before_anything_warm_is_lost(parked_tokens: int) -> None:
    rig = Rig(2, parked_tokens)
    assert rig.cache.room_tokens(1000) == 2000
    rig.run(text(1, 160))
    lost = 160 if parked_tokens == 0 else 0
    assert rig.cache.room_tokens(1000) == 2000 - lost
    for seed in (2, 3, 4, 5):
        rig.run(text(seed, 160))  # the oldest are parked, as far as there is room
    still = {0: 320, 320: 320, 100_000: 0}[parked_tokens]
    assert rig.cache.room_tokens(1000) == 2000 - still
    rig.begin(text(6, 160))  # a running one leaves one slot to others
    assert rig.cache.room_tokens(1000) == 1000 - (0 if parked_tokens == 100_000 else 160)
