"""One engine on virtual time: slots, a deadline-ordered queue, prefill chunks between batched decode steps.

A step takes at most `prefill_chunk` tokens of prefill, in order of arrival at a slot, and one token
of everybody who decodes. Between two changes (somebody comes, is prefilled, or ends)
all steps are alike, so a stretch of them is one event. `speed_noise` is a factor per request:
on its own prefill, and as its share of the batch.
"""

from __future__ import annotations

import copy
import math
from bisect import insort
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from simulator.fleet import NodeSpec
from simulator.trace import MAX_NAMES, NAME_TOKENS, Arrival
from tidegate.routing.prefix import names_digest

_ROUNDING = 1e-9


@dataclass(slots=True, eq=False)
class Seq:
    """One request on a node. `prefill` is what is left in tokens of a request of usual speed."""

    arrival: Arrival
    factor: float
    deadline_s: float = math.inf
    number: int = 0
    submitted_s: float = 0.0
    started_s: float = 0.0
    first_s: float = 0.0
    cached: int = 0
    prefill: float = 0.0
    produced: int = 0
    batch: int = 0

    def __lt__(self, other: Seq) -> bool:
        return (self.deadline_s, self.number) < (other.deadline_s, other.number)


class BlockCache:
    """Least recently used blocks go first, a chain's end before its beginning.

    Of a prompt the first MAX_NAMES blocks are reported, as many as a gateway names; the engine keeps all.
    """

    def __init__(self, tokens: int) -> None:
        self._room = tokens // NAME_TOKENS
        self._blocks: OrderedDict[bytes, bool] = OrderedDict()
        self.digest = 0
        self.held: set[bytes] = set()
        self.evicted: set[bytes] = set()

    def warm_tokens(self, names: Sequence[bytes], prompt_tokens: int) -> int:
        count = 0
        for name in names:
            if name not in self._blocks:
                break
            count += 1
        return min(count * NAME_TOKENS, prompt_tokens - 1)

    @property
    def free_tokens(self) -> int:
        return (self._room - len(self._blocks)) * NAME_TOKENS

    def insert(self, names: Sequence[bytes]) -> None:
        for at in range(min(len(names), self._room) - 1, -1, -1):
            name = names[at]
            if name not in self._blocks:
                self._blocks[name] = at < MAX_NAMES
                if at < MAX_NAMES:
                    self._tell(name, self.held, self.evicted)
            self._blocks.move_to_end(name)
        while len(self._blocks) > self._room:
            name, is_named = self._blocks.popitem(last=False)
            if is_named:
                self._tell(name, self.evicted, self.held)

    def _tell(self, name: bytes, now: set[bytes], before: set[bytes]) -> None:
        self.digest ^= names_digest((name,))
        now.add(name)
        before.discard(name)

    def twin(self) -> BlockCache:
        """A copy that goes its own way."""
        twin = BlockCache(self._room * NAME_TOKENS)
        twin._blocks = self._blocks.copy()
        return twin

    def clear(self) -> None:
        self._blocks.clear()
        self.digest = 0
        self.held, self.evicted = set(), set()


@dataclass(slots=True)
class Node:
    """`end_s` is when the present stretch of steps ends, None while nothing runs."""

    spec: NodeSpec
    index: int
    cache: BlockCache
    running: list[Seq] = field(default_factory=list)
    queue: list[Seq] = field(default_factory=list)
    transit: list[tuple[float, Seq]] = field(default_factory=list)
    end_s: float | None = None
    slow: float = 1.0
    up: bool = True
    silent: bool = False
    epoch: int = 0
    _from_s: float = 0.0
    _step_s: float = 0.0
    _steps: int = 0
    _takes: list[tuple[Seq, float]] = field(default_factory=list)
    _decoding: list[Seq] = field(default_factory=list)
    _count: int = 0

    @property
    def load(self) -> int:
        """Running, waiting, and on the way."""
        return len(self.running) + len(self.queue) + len(self.transit)

    def submit(self, seq: Seq, now_s: float) -> None:
        """It starts with the next step that has a slot for it."""
        self._count += 1
        seq.number, seq.submitted_s = self._count, now_s
        insort(self.queue, seq)
        if self.silent:
            return
        if self.end_s is None:
            self._start(now_s)
        elif len(self.running) < self.spec.slots:
            self.cut(now_s)

    def cut(self, now_s: float) -> None:
        """The present stretch ends with the step that runs now."""
        if self.end_s is not None and self._steps > 1:
            done = max(1, math.ceil((now_s - self._from_s) / self._step_s - _ROUNDING))
            if done < self._steps:
                self._steps = done
                self.end_s = self._from_s + done * self._step_s

    def finish(self) -> tuple[list[Seq], list[Seq]]:
        """The stretch is over: who gave a first token with its last step, and who ended."""
        assert self.end_s is not None
        now_s, steps = self.end_s, self._steps
        first: list[Seq] = []
        ended: list[Seq] = []
        for seq, take in self._takes:
            seq.prefill -= take * steps
            if seq.prefill <= _ROUNDING:
                seq.prefill = 0.0
                seq.produced, seq.first_s = 1, now_s
                self.cache.insert(seq.arrival.names)
                first.append(seq)
                if seq.arrival.output_tokens <= 1:
                    ended.append(seq)
        for seq in self._decoding:
            seq.produced += steps
            if seq.produced >= seq.arrival.output_tokens:
                ended.append(seq)
        for seq in first:
            seq.batch = len(self._decoding) + len(first)
        for seq in ended:
            self.running.remove(seq)
        self._start(now_s)
        return first, ended

    def leaves_waiting(self) -> bool:
        """Whether somebody will still wait for a slot after the present stretch."""
        steps = self._steps
        ended = sum(s.produced + steps >= s.arrival.output_tokens for s in self._decoding)
        ended += sum(
            s.arrival.output_tokens <= 1 and s.prefill - take * steps <= _ROUNDING for s, take in self._takes
        )
        return len(self.queue) > self.spec.slots - len(self.running) + ended

    def drop_all(self, now_s: float) -> list[Seq]:
        """A crash: everything is gone, the cache too. Those that were lost have what was made of them."""
        self._halt(now_s)
        lost = [*self.running, *self.queue]
        self.running, self.queue = [], []
        self.cache.clear()
        return lost

    def stop(self, now_s: float) -> None:
        """It falls silent and stands still."""
        self._halt(now_s)
        self.silent = True

    def cancel(self, seq: Seq) -> None:
        """Nobody waits for it any more. Only while it stands still: see stop()."""
        for seqs in (self.running, self.queue):
            if seq in seqs:
                seqs.remove(seq)

    def go_on(self, now_s: float) -> None:
        """After stop(): the step that was under way begins anew."""
        self.silent = False
        self._start(now_s)

    def pace(self, slow: float, now_s: float) -> None:
        """What is left takes `slow` times as long as usual from now on, also of the step under way."""
        ratio, self.slow = slow / self.slow, slow
        if self.end_s is not None:
            self._step_s *= ratio
            self._from_s = now_s - (now_s - self._from_s) * ratio
            self.end_s = self._from_s + self._steps * self._step_s

    def pending(self, now_s: float) -> tuple[int, int]:
        """Prefill and decode tokens not yet computed, as an engine counts them."""
        done = self._done(now_s)
        prefill = sum(s.prefill / s.factor for s in self.running if s.prefill)
        prefill -= done * sum(take / s.factor for s, take in self._takes)
        prefill += sum(
            s.arrival.prompt_tokens - self.cache.warm_tokens(s.arrival.names, s.arrival.prompt_tokens)
            for s in self.queue
        )
        decode = sum(s.arrival.max_tokens - s.produced for s in self.running) - done * len(self._decoding)
        decode += sum(s.arrival.max_tokens for s in self.queue)
        return max(int(prefill), 0), max(decode, 0)

    def fork(self) -> Node:
        """A copy to look ahead with. Its cache is shared and must not change: see Foresight."""
        twin = copy.copy(self)
        copies = {id(s): copy.copy(s) for s in (*self.running, *self.queue)}
        twin.running = [copies[id(s)] for s in self.running]
        twin.queue = [copies[id(s)] for s in self.queue]
        twin._takes = [(copies[id(s)], take) for s, take in self._takes]
        twin._decoding = [copies[id(s)] for s in self._decoding]
        twin.transit = [(at_s, copy.copy(s)) for at_s, s in self.transit]
        twin.cache = _Frozen(self.cache)
        return twin

    def _done(self, now_s: float) -> int:
        """Steps of the present stretch by now."""
        if self.end_s is None or now_s <= self._from_s:
            return 0
        return min(self._steps, int((now_s - self._from_s) / self._step_s + _ROUNDING))

    def _halt(self, now_s: float) -> None:
        """The present stretch ends with what is done; its last step, which may end somebody, is not."""
        if self.end_s is not None:
            done = min(self._done(now_s), self._steps - 1)
            for seq, take in self._takes:
                seq.prefill -= take * done
            for seq in self._decoding:
                seq.produced += done
        self.end_s, self._takes, self._decoding = None, [], []

    def _start(self, now_s: float) -> None:
        spec, running = self.spec, self.running
        while self.queue and len(running) < spec.slots:
            seq = self.queue.pop(0)
            prompt = seq.arrival.prompt_tokens
            seq.started_s = now_s
            seq.cached = self.cache.warm_tokens(seq.arrival.names, prompt) if seq.arrival.names else 0
            seq.prefill = (prompt - seq.cached) * seq.factor
            running.append(seq)
        if not running:
            self.end_s, self._takes, self._decoding = None, [], []
            return
        decoding = self._decoding = [s for s in running if s.prefill == 0.0]
        steps, step_s, takes = 1 << 60, 0.0, []
        if len(decoding) < len(running):
            room = float(spec.prefill_chunk)
            for seq in running:
                if seq.prefill > 0.0 and room > 0.0:
                    take = min(room, seq.prefill)
                    takes.append((seq, take))
                    room -= take
            head = takes[0][0]
            whole = head.prefill > spec.prefill_chunk
            steps = math.ceil(head.prefill / spec.prefill_chunk) - 1 if whole else 1
            step_s = (spec.prefill_chunk - room) / spec.prefill_tps
        if decoding:
            steps = min(steps, min(s.arrival.output_tokens - s.produced for s in decoding))
            batch = len(decoding)
            step_s += spec.step_s(batch) * sum(s.factor for s in decoding) / batch
        self._takes, self._steps, self._step_s = takes, steps, step_s * self.slow
        self._from_s = now_s
        self.end_s = now_s + self._steps * self._step_s


class _Frozen(BlockCache):
    """A cache to look at."""

    def __init__(self, cache: BlockCache) -> None:
        self._room, self._blocks, self.digest = cache._room, cache._blocks, cache.digest
        self.held, self.evicted = set(), set()

    def insert(self, names: Sequence[bytes]) -> None:
        pass
