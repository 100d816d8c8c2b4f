"""When a node would be done with a request, if nothing else came after it: for the policies that know.

A twin of each node runs ahead of it: as long as somebody waits there, newcomers wait too and change nothing
before their turn, so what is sure is simulated once and not again for every request. Who is asked about is
put into a copy of the twin, which costs what a few slots hold, however long the queue is.
"""

from __future__ import annotations

import copy
import math
from bisect import insort
from operator import itemgetter

from simulator.node import Node, Seq

_at_s = itemgetter(0)


class Foresight:
    """Of one node. Who places a request there says so with add()."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._twin = node
        self._coming: list[tuple[float, Seq]] = []
        self._state: tuple[int, float, bool, bool] | None = None

    def add(self, seq: Seq, arrives_s: float) -> None:
        insort(self._coming, (arrives_s, _in_turn(seq, arrives_s)), key=_at_s)

    def of(self, seq: Seq, arrives_s: float, now_s: float, *, whole: bool) -> tuple[float, float]:
        """When the first token and (with `whole`) the last one would be made."""
        self._follow(now_s)
        twin, mine = self._twin.fork(), _in_turn(seq, arrives_s)
        coming = list(self._coming)
        insort(coming, (arrives_s, mine), key=_at_s)
        while True:
            if coming and (twin.end_s is None or coming[0][0] <= twin.end_s):
                at_s, next_seq = coming.pop(0)
                twin.submit(copy.copy(next_seq) if next_seq is not mine else mine, at_s)
                continue
            at_s = twin.end_s if twin.end_s is not None else math.inf
            first, ended = twin.finish()
            if mine in ended or (not whole and mine in first):
                return mine.first_s, at_s

    def _follow(self, now_s: float) -> None:
        """The twin as the node is now, or further where somebody still waits then."""
        node = self._node
        state = (node.epoch, node.slow, node.up, node.silent)
        if state != self._state:
            # It failed or recovered: what was foreseen is void.
            self._state, self._twin = state, node.fork()
            self._twin.cache = node.cache.twin()
            self._twin.queue = [_in_turn(seq, seq.submitted_s) for seq in self._twin.queue]
            if node.silent:
                self._twin.go_on(now_s)  # nobody knows for how long: as if it did at once
            self._coming = [(at_s, _in_turn(seq, at_s)) for at_s, seq in sorted(node.transit, key=_at_s)]
        twin, coming = self._twin, self._coming
        while True:
            if coming and (twin.end_s is None or coming[0][0] <= twin.end_s):
                if coming[0][0] > now_s and not twin.queue:
                    return
                at_s, seq = coming.pop(0)
                twin.submit(seq, at_s)
            elif twin.end_s is None or (twin.end_s > now_s and not twin.leaves_waiting()):
                return
            else:
                twin.finish()


def _in_turn(seq: Seq, arrives_s: float) -> Seq:
    """First come, first served, also where the twin learns later of who comes earlier."""
    twin = copy.copy(seq)
    twin.deadline_s = arrives_s
    return twin
