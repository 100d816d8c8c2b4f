"""Which prefix blocks a server probably still holds that does not say so.

Such servers keep what they computed until its room is needed, so whatever they computed lately is taken to be
warm: the most recently used blocks, as many as fit, and none for longer than `keep_s`. Where the server tells
with an answer how much of the prompt it found warm, a guess that was too high lowers how much is taken to
fit, for others may use the server too; a right one raises it again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from tidegate.routing.domain import CacheDelta
from tidegate.routing.prefix import BLOCK_BYTES, names_digest

BYTES_PER_TOKEN = 4
BLOCK_TOKENS = BLOCK_BYTES // BYTES_PER_TOKEN
# A template's tokens and the guess of four bytes a token make a right guess look a little wrong.
_FAIR_SHARE = 0.7
_SHRINK, _GROW = 0.7, 1.05


class GuessedPrefixes:
    """`clock` gives seconds; a `keep_s` of 0 guesses nothing."""

    def __init__(self, keep_s: float, clock: Callable[[], float]) -> None:
        self._keep_s = keep_s
        self._clock = clock
        self._used_s: OrderedDict[bytes, float] = OrderedDict()
        self._held: set[bytes] = set()
        self._evicted: set[bytes] = set()
        self._digest = 0
        self._fits_share = 1.0
        self._tells = False

    def warm_tokens(self, names: Sequence[bytes], prompt_tokens: int) -> int:
        """How much of a prompt is taken to be warm; the last token never is."""
        self._expire()
        count = 0
        for name in names:
            if name not in self._used_s:
                break
            count += 1
        return max(min(count * BLOCK_TOKENS, prompt_tokens - 1), 0)

    def computed(self, names: Sequence[bytes], room_tokens: int) -> None:
        """The server has computed this prefix; all of its cache is `room_tokens`."""
        if self._keep_s <= 0.0:
            return
        room, now_s = int(room_tokens * self._fits_share) // BLOCK_TOKENS, self._clock()
        for name in reversed(names[:room]):
            if name not in self._used_s:
                self._note(name, self._held, self._evicted)
            self._used_s[name] = now_s
            self._used_s.move_to_end(name)
        while len(self._used_s) > room:
            self._drop_oldest()

    def heard(self, guessed_tokens: int, said_tokens: int, *, sure: bool) -> None:
        """What the server said it had found warm, where `guessed_tokens` were expected. Without `sure` a 0
        says nothing until it said more once: many servers leave it out."""
        self._tells = self._tells or sure or said_tokens > 0
        if not self._tells or not guessed_tokens:
            return
        right = said_tokens >= _FAIR_SHARE * guessed_tokens - BLOCK_TOKENS
        self._fits_share = min(self._fits_share * (_GROW if right else _SHRINK), 1.0)

    def clear(self) -> None:
        """The server was gone, and so is what it held."""
        while self._used_s:
            self._drop_oldest()

    def changes(self) -> CacheDelta | None:
        self._expire()
        if not self._held and not self._evicted:
            return None
        delta = CacheDelta(tuple(self._held), tuple(self._evicted), self._digest)
        self._held, self._evicted = set(), set()
        return delta

    def full(self) -> CacheDelta:
        self._expire()
        self._held, self._evicted = set(), set()
        return CacheDelta(tuple(self._used_s), (), self._digest, full=True)

    def _expire(self) -> None:
        since_s = self._clock() - self._keep_s
        while self._used_s and next(iter(self._used_s.values())) < since_s:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        name, _ = self._used_s.popitem(last=False)
        self._note(name, self._evicted, self._held)

    def _note(self, name: bytes, now: set[bytes], before: set[bytes]) -> None:
        """Neither side of a report speaks of what came and went between two of them."""
        self._digest ^= names_digest((name,))
        if name in before:
            before.discard(name)
        else:
            now.add(name)
