"""Which tokens each slot of the cache still holds, and by which names the gateway knows them. Pure.

A new sequence takes the idle slot with the longest common prefix and computes only the rest. Prefixes are
shared within a tenant only, so that no tenant can learn from latency what another one asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]

_NONE = np.zeros(0, np.int32)


@dataclass(slots=True)
class Slot:
    """One cache sequence. `tokens` lie in it from position 0; `names` are blocks it holds completely."""

    index: int
    tokens: Tokens = field(default_factory=lambda: _NONE)
    names: tuple[bytes, ...] = ()
    tenant: str = ""
    busy: bool = False
    last_used: int = 0


class HeldNames:
    """The names held by any slot, and what changed since it was last asked."""

    def __init__(self) -> None:
        self._holders: Counter[bytes] = Counter()
        self._reported: set[bytes] = set()
        self._touched: set[bytes] = set()

    def replace(self, old: Iterable[bytes], new: Iterable[bytes]) -> None:
        for name in new:
            self._holders[name] += 1
            self._touched.add(name)
        for name in old:
            self._holders[name] -= 1
            self._touched.add(name)

    def take_changes(self) -> tuple[list[bytes], list[bytes]]:
        """(newly held, evicted) since the last call."""
        held, evicted = [], []
        for name in self._touched:
            holds = self._holders[name] > 0
            if holds and name not in self._reported:
                held.append(name)
            elif not holds and name in self._reported:
                evicted.append(name)
            if not holds:
                del self._holders[name]
        self._touched.clear()
        self._reported.update(held)
        self._reported.difference_update(evicted)
        return held, evicted


class SlotTable:
    """The slots of one engine."""

    def __init__(self, count: int) -> None:
        self.slots = tuple(Slot(i) for i in range(count))
        self.names = HeldNames()
        self._uses = 0

    @property
    def idle(self) -> int:
        return sum(not slot.busy for slot in self.slots)

    def take(self, prompt: Tokens, tenant: str, names: Sequence[bytes]) -> tuple[Slot, int]:
        """The idle slot for `prompt`, now busy, and how many of its leading tokens it already holds.

        At least the prompt's last token is left to compute: its logits are needed. A slot must be idle.
        """
        idle = [slot for slot in self.slots if not slot.busy]
        best, cached = None, 0
        for slot in idle:
            common = common_prefix(slot.tokens, prompt[:-1]) if slot.tenant == tenant else 0
            if common > cached:
                best, cached = slot, common
        slot = best or self._cheapest(idle)
        self._uses += 1
        slot.busy, slot.tenant, slot.last_used = True, tenant, self._uses
        slot.tokens = prompt[:cached]
        self._name(slot, _common_names(slot.names, names) if cached else ())
        return slot, cached

    def _cheapest(self, idle: Sequence[Slot]) -> Slot:
        """An empty slot, else the one unused for longest; beside a busy one where there is a choice.

        Neighbours matter: llama.cpp computes consecutive sequences in one go and splits the batch at gaps.
        """
        busy = {slot.index for slot in self.slots if slot.busy}

        def rank(slot: Slot) -> tuple[bool, bool, int, int]:
            apart = bool(busy) and busy.isdisjoint((slot.index - 1, slot.index + 1))
            return (len(slot.tokens) > 0, apart, slot.last_used, slot.index)

        return min(idle, key=rank)

    def forget(self, slot: Slot) -> None:
        """The slot holds nothing any more: its memory could not be cut."""
        slot.tokens = _NONE
        self._name(slot, ())

    def prefilled(self, slot: Slot, names: Sequence[bytes]) -> None:
        """The slot now holds the whole prompt that `names` stand for."""
        self._name(slot, tuple(names))

    def release(self, slot: Slot, tokens: Tokens) -> None:
        """The slot is idle and holds `tokens`."""
        slot.busy = False
        slot.tokens = tokens
        slot.last_used = self._uses

    def _name(self, slot: Slot, names: tuple[bytes, ...]) -> None:
        if names != slot.names:
            self.names.replace(slot.names, names)
            slot.names = names


def common_prefix(left: Tokens, right: Tokens) -> int:
    """How many leading tokens are equal."""
    length = min(len(left), len(right))
    different = np.flatnonzero(left[:length] != right[:length])
    return int(different[0]) if len(different) else length


def _common_names(left: Sequence[bytes], right: Sequence[bytes]) -> tuple[bytes, ...]:
    common = []
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        common.append(a)
    return tuple(common)
