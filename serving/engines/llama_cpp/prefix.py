"""Exact reuse of computed prefixes: what each slot holds, what is parked, and who can share with whom.

A new sequence begins with the longest prefix that any slot, running ones included, or the parked blocks hold
for its tenant; tokens are compared, never hashes. What a slot held before is parked before it is lost.
Tenants share nothing, so that none can learn from latency what another one asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from serving.engines.llama_cpp.block_tree import BlockTree, NamedPositions, Tokens
from serving.engines.llama_cpp.held_names import HeldNames
from serving.engines.llama_cpp.kv_state import (
    Bytes,
    KvBlock,
    NotCuttable,
    SavedState,
    join_blocks,
    parse_state,
)
from serving.engines.llama_cpp.moving import MoveCost

BLOCK_TOKENS = 16
# Copying from elsewhere, or waiting for another sequence's prefill, is not worth it for less.
_MIN_GAIN_TOKENS = 32
# Of what prompts leave about this share is wanted again (29 % of a replayed conversation trace's tokens).
_USED_AGAIN = 0.3
_ALL = 2**62

_NONE: Tokens = np.zeros(0, np.int32)


class SlotMemory(Protocol):
    """What a Context does with the sequence of one slot."""

    def truncate(self, sequence: int, length: int) -> bool: ...

    def save(self, sequence: int) -> Bytes: ...

    def restore(self, sequence: int, state: Bytes) -> bool: ...

    def copy(self, source: int, target: int) -> None: ...


@dataclass(slots=True, eq=False)
class Slot:
    """One cache sequence: the first `filled` of `tokens` lie in it from position 0.

    While it is busy, `tokens` is the whole prompt it is being filled with. `names` are those of the blocks
    that it holds completely. A busy slot is `waiting` while another one computes what it needs, too.
    Its first `public_tokens` are public data.
    """

    index: int
    tokens: Tokens = field(default_factory=lambda: _NONE)
    filled: int = 0
    names: NamedPositions = ()
    tenant: str = ""
    busy: bool = False
    waiting: bool = False
    last_used: int = 0
    public_tokens: int = 0

    def holds(self, wanted: Tokens, tenant: str) -> int:
        """How many leading tokens of the tenant's `wanted` lie in it."""
        return min(self.filled, common_prefix(self.tokens, wanted)) if self.tenant == tenant else 0


@dataclass(frozen=True, slots=True)
class Lease:
    """A slot for a prompt whose first `cached` tokens it holds.

    `leader` is a busy slot that is about to hold the first `shared` ones: waiting for it is better than
    computing them again.
    """

    slot: Slot
    cached: int
    leader: Slot | None = None
    shared: int = 0


class PrefixCache:
    """The slots of one engine and at most `park_bytes` of parked blocks.

    With `park_bytes` 0 (states that cannot be cut, see kv_state) nothing is parked, and running sequences
    share by copying whole slots. `ms_per_token` is what computing a prompt token costs now: blocks are parked
    and brought back only where that takes less time than it saves. `clock` times that, in seconds; by one
    that stands still it is free.
    """

    def __init__(
        self,
        slots: int,
        memory: SlotMemory,
        *,
        park_bytes: int,
        ms_per_token: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slots = tuple(Slot(i) for i in range(slots))
        self.names = HeldNames()
        self.tree: BlockTree[KvBlock] | None = None
        if park_bytes > 0:
            self.tree = BlockTree(park_bytes, BLOCK_TOKENS, self.names)
        self._memory = memory
        self._ms_per_token = ms_per_token
        self._clock = clock
        self._saving, self._restoring = MoveCost(), MoveCost()
        self._uses = 0

    @property
    def idle(self) -> int:
        return sum(not slot.busy for slot in self.slots)

    def room_tokens(self, context_tokens: int) -> int:
        """How many tokens new prompts may have before anything warm is lost; a slot has room for
        `context_tokens`. What lies in idle slots is not lost as far as there is room to park it."""
        warm = [slot.filled for slot in self.slots if not slot.busy]
        kept = 0 if self.tree is None else self.tree.room_tokens
        return len(warm) * context_tokens - max(sum(warm) - kept, 0)

    def take(self, prompt: Tokens, tenant: str, names: NamedPositions, *, public: bool = False) -> Lease:
        """An idle slot for `prompt`, now busy. There must be one. `public`: all of it is public data.

        At least the prompt's last token is left to compute: its logits are needed.
        """
        wanted = prompt[:-1]
        best = self._in_place(wanted, tenant)
        slot = best if best is not None else self._cheapest()
        have = slot.holds(wanted, tenant)
        source, length = self._elsewhere(wanted, tenant, slot)
        better = length >= have + (BLOCK_TOKENS if self.tree is not None else _MIN_GAIN_TOKENS)
        if better and self.tree is None:
            # The copy overwrites whatever lies there.
            slot = self._cheapest()
        cached = self._bring(slot, source, wanted[:length], tenant) if better else have
        if not better:
            self._vacate(slot, have)
        if not self._memory.truncate(slot.index, cached):
            cached = 0
        self._uses += 1
        slot.busy, slot.tenant, slot.last_used = True, tenant, self._uses
        # What public work has begun stays public when other work goes on with it.
        slot.public_tokens = _ALL if public else 0 if better else min(slot.public_tokens, cached)
        slot.tokens, slot.filled = prompt, cached
        self._name(slot, names, cached)
        return self._lease(slot)

    def catch_up(self, lease: Lease) -> Lease:
        """The same lease while its leader still computes what it waits for; else one that has what there is.

        That one may have another leader: when the first one left early, one of its followers goes on.
        """
        slot, leader = lease.slot, lease.leader
        shared = slot.tokens[: lease.shared]
        if leader is None or (
            leader.busy
            and not leader.waiting
            and leader.tenant == slot.tenant
            and leader.filled < lease.shared <= common_prefix(leader.tokens, shared)
        ):
            return lease
        wanted = slot.tokens[:-1]
        source, length = self._elsewhere(wanted, slot.tenant, slot)
        if length >= slot.filled + _MIN_GAIN_TOKENS:
            # What lies in the slot already is the beginning of what is brought.
            slot.filled = self._bring(slot, source, wanted[:length], slot.tenant)
            if not self._memory.truncate(slot.index, slot.filled):
                slot.filled = 0
        return self._lease(slot)

    def prefilled(self, slot: Slot, names: NamedPositions) -> None:
        """The slot now holds the whole prompt that `names` stand for."""
        self._name(slot, names, slot.filled)

    def release(self, slot: Slot, tokens: Tokens, names: NamedPositions) -> None:
        """The slot is idle and holds `tokens`."""
        slot.busy = slot.waiting = False
        slot.tokens, slot.filled = tokens, len(tokens)
        slot.last_used = self._uses
        self._name(slot, names, slot.filled)

    def park_idle(self) -> None:
        """What idle slots hold is parked, too, as far as there is room."""
        for slot in self.slots:
            if not slot.busy:
                self._vacate(slot, 0, always=True)

    def forget_slots(self) -> None:
        """What idle slots held is lost; parked blocks are not."""
        for slot in self.slots:
            if not slot.busy:
                slot.tokens, slot.filled = slot.tokens[:0], 0
                self._name(slot, (), 0)

    def pin(self, slot: Slot, tenants: Sequence[str]) -> int:
        """Parks what an idle slot holds for each tenant and keeps it for good; how many tokens that are."""
        if self.tree is None:
            return 0
        self._park(slot, slot.filled, always=True)
        tree, tokens = self.tree, slot.tokens[: slot.filled]
        blocks = [node.block for node in tree.match(slot.tenant, tokens) if node.block is not None]
        cost_ms = self._ms_per_token() * BLOCK_TOKENS
        whole = tokens[: len(blocks) * BLOCK_TOKENS]
        for tenant in tenants:
            # The same keys and values: only the room that they are counted for is taken twice.
            tree.park(tenant, whole, (), lambda start, end: blocks[start // BLOCK_TOKENS], cost_ms)
        return min(tree.pin(tenant, whole) for tenant in tenants)

    # --- inside ---

    def _in_place(self, wanted: Tokens, tenant: str) -> Slot | None:
        """The idle slot that holds most of `wanted`, unless it lies apart and can be moved."""
        idle = [slot for slot in self.slots if not slot.busy]
        best = max(idle, key=lambda slot: (slot.holds(wanted, tenant), -slot.filled))
        if best.holds(wanted, tenant) == 0 or (self.tree is not None and self._apart(best)):
            return None
        return best

    def _cheapest(self) -> Slot:
        """The idle slot whose loss costs least, beside a busy one where there is a choice.

        Neighbours matter: llama.cpp computes consecutive sequences in one go and splits the batch at gaps.
        What lies in a slot matters less where it can be parked.
        """
        parks = self.tree is not None

        def rank(slot: Slot) -> tuple[bool, bool, int, int]:
            apart, full = self._apart(slot), slot.filled > 0
            return (*((apart, full) if parks else (full, apart)), slot.last_used, slot.index)

        return min((slot for slot in self.slots if not slot.busy), key=rank)

    def _apart(self, slot: Slot) -> bool:
        busy = {other.index for other in self.slots if other.busy}
        return bool(busy) and busy.isdisjoint((slot.index - 1, slot.index + 1))

    def _elsewhere(self, wanted: Tokens, tenant: str, target: Slot) -> tuple[Slot | None, int]:
        """(the other slot, or None for the parked blocks, how much of `wanted` lies there)."""
        if self.tree is None:
            others = [s for s in self.slots if s is not target]
            source = max(others, key=lambda s: s.holds(wanted, tenant), default=None)
            return source, 0 if source is None else source.holds(wanted, tenant)
        parked = len(self.tree.match(tenant, wanted)) * BLOCK_TOKENS
        source = max(self.slots, key=lambda s: s.holds(wanted, tenant) if s is not target else -1)
        held = source.holds(wanted, tenant) // BLOCK_TOKENS * BLOCK_TOKENS if source is not target else 0
        have = target.holds(wanted, tenant)
        if held > parked and self._sharing_pays(source.filled, held, have):
            return source, held
        if parked > have and not self._restoring.pays(parked, self._gain_ms(parked - have)):
            self._restoring.refused()
            return None, 0
        return None, parked

    def _gain_ms(self, tokens: int) -> float:
        return self._ms_per_token() * tokens

    def _sharing_pays(self, saved: int, brought: int, have: int) -> bool:
        """Whether parking `saved` tokens of one slot, to bring them to another, costs less than computing."""
        return self._restoring.pays(brought, self._gain_ms(brought - have) - self._saving.expected_ms(saved))

    def _lease(self, slot: Slot) -> Lease:
        """With the computing slot that will hold most of the prompt and does not yet, if there is one."""
        leader, shared = None, slot.filled + _MIN_GAIN_TOKENS - 1
        for other in self.slots:
            if other is slot or not other.busy or other.waiting or other.tenant != slot.tenant:
                continue
            common = common_prefix(other.tokens, slot.tokens[:-1])
            if common <= shared or other.filled >= common:
                continue
            if self.tree is None or self._sharing_pays(len(other.tokens), common, slot.filled):
                leader, shared = other, common
        slot.waiting = leader is not None
        return Lease(slot, slot.filled, leader, shared if leader is not None else 0)

    def _bring(self, slot: Slot, source: Slot | None, wanted: Tokens, tenant: str) -> int:
        """Makes the slot hold `wanted` from elsewhere as far as possible; how much that is."""
        if self.tree is None:
            if source is not None:
                self._memory.copy(source.index, slot.index)
            return len(wanted)
        if source is not None:
            self._park(source, len(wanted), always=True)
        cost_ms = self._ms_per_token() * BLOCK_TOKENS
        self.tree.hit(self.tree.match(tenant, wanted), cost_ms)
        if not slot.busy:
            self._vacate(slot, 0)
        # Once more: what was parked last may have pushed something out.
        blocks = [node.block for node in self.tree.match(tenant, wanted) if node.block is not None]
        have = slot.holds(wanted, tenant)
        count = len(blocks) * BLOCK_TOKENS
        if count <= have:
            return have
        began_s = self._clock()
        restored = self._memory.restore(slot.index, join_blocks(blocks))
        self._restoring.observe(count, self._clock() - began_s)
        return count if restored else 0

    def _vacate(self, slot: Slot, keep: int, *, always: bool = False) -> None:
        """Parks what the slot holds beyond `keep` tokens, if that is worth it or `always`."""
        if self.tree is not None and slot.filled - keep >= BLOCK_TOKENS:
            self._park(slot, slot.filled, keep=keep, always=always)

    def _park(self, slot: Slot, length: int, *, keep: int = 0, always: bool = False) -> None:
        """Where saving the slot is worth it, or `always`; blocks that are parked already count as used. What
        it gains is what would be lost: neither parked already nor among the first `keep` tokens, which stay.
        """
        assert self.tree is not None
        source = _Source(self._memory, slot.index)
        cost_ms = self._gain_ms(BLOCK_TOKENS)
        known = len(self.tree.match(slot.tenant, slot.tokens[:length])) * BLOCK_TOKENS
        whole = length // BLOCK_TOKENS * BLOCK_TOKENS
        gain_ms = _USED_AGAIN * self._gain_ms(max(whole - max(known, keep), 0))
        if whole > known and not always and not self._saving.pays(slot.filled, gain_ms):
            self._saving.refused()
            length = known
        began_s = self._clock()
        try:
            self.tree.park(
                slot.tenant,
                slot.tokens[:length],
                slot.names,
                source.cut,
                cost_ms,
                public_tokens=slot.public_tokens,
            )
        except NotCuttable:
            # Its cells lie out of order: the rest is computed again when it is needed.
            return
        if source.saved:
            self._saving.observe(slot.filled, self._clock() - began_s)

    def _name(self, slot: Slot, names: NamedPositions, held: int) -> None:
        kept = tuple(pair for pair in names if pair[1] <= held)
        if kept != slot.names:
            self.names.replace([name for name, _ in slot.names], [name for name, _ in kept])
            slot.names = kept


class _Source:
    """A slot's state, saved when its first block is asked for."""

    def __init__(self, memory: SlotMemory, sequence: int) -> None:
        self._memory = memory
        self._sequence = sequence
        self._saved: SavedState | None = None

    @property
    def saved(self) -> bool:
        return self._saved is not None

    def cut(self, start: int, end: int) -> KvBlock:
        if self._saved is None:
            self._saved = parse_state(self._memory.save(self._sequence))
        return self._saved.cut(start, end)


def common_prefix(left: Tokens, right: Tokens) -> int:
    """How many leading tokens are equal."""
    length = min(len(left), len(right))
    different = np.flatnonzero(left[:length] != right[:length])
    return int(different[0]) if len(different) else length
