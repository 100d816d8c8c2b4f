"""The pure parts of the oracle engine: its tokens, stop strings, prefix cache and pace.

token[i] is a hash of the model digest, the whole input and all previous tokens, so that a token which was
lost, doubled or mixed in from another sequence changes everything after it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from tidegate.routing.domain import CacheDelta
from tidegate.routing.prefix import BLOCK_BYTES, matched_blocks, names_digest

BYTES_PER_TOKEN = 4
TOKENS_PER_BLOCK = BLOCK_BYTES // BYTES_PER_TOKEN
VOCABULARY = 1 << 16


class TokenChain:
    """The next token of one sequence, again and again."""

    def __init__(self, digest: str, input_bytes: bytes) -> None:
        self._state = hashlib.blake2b(digest.encode() + b"\0" + input_bytes, digest_size=16).digest()

    def absorb(self, token_id: int) -> None:
        """Takes `token_id` as the next one, whoever chose it."""
        word = token_id.to_bytes(8, "big", signed=True)
        self._state = hashlib.blake2b(self._state + word, digest_size=16).digest()

    def next(self) -> int:
        token_id = int.from_bytes(self._state[:2], "big")
        self.absorb(token_id)
        return token_id


def oracle_tokens(digest: str, input_bytes: bytes, n: int) -> tuple[int, ...]:
    """The first `n` tokens that the model `digest` answers `input_bytes` with."""
    chain = TokenChain(digest, input_bytes)
    return tuple(chain.next() for _ in range(n))


def token_text(token_id: int) -> str:
    """A short word such as "t1a2b ", all of the same length."""
    return f"t{token_id:04x} "


def oracle_text(digest: str, input_bytes: bytes, n: int) -> str:
    """The text of `oracle_tokens`."""
    return "".join(map(token_text, oracle_tokens(digest, input_bytes, n)))


def oracle_length(digest: str, input_bytes: bytes, bounds: tuple[int, int]) -> int:
    """The natural length of an answer in tokens, within `bounds` (both inclusive)."""
    low, high = bounds
    seed = hashlib.blake2b(b"length\0" + digest.encode() + b"\0" + input_bytes, digest_size=8).digest()
    return low + int.from_bytes(seed, "big") % (high - low + 1)


def input_tokens(input_bytes: bytes) -> int:
    """How many tokens the oracle counts for an input."""
    return max(1, len(input_bytes) // BYTES_PER_TOKEN)


class StopFilter:
    """Lets text through up to the first stop string, holding back what may be the beginning of one."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may go out now, and whether a stop string was met (nothing follows it then)."""
        if not self._stops:
            return text, False
        text = self._held + text
        found = min((at for at in map(text.find, self._stops) if at >= 0), default=-1)
        if found >= 0:
            self._held = ""
            return text[:found], True
        keep = max(map(len, self._stops)) - 1
        start = next(
            (at for at in range(max(0, len(text) - keep), len(text)) if self._may_begin(text[at:])),
            len(text),
        )
        self._held = text[start:]
        return text[:start], False

    def flush(self) -> str:
        """What is still held back; the sequence has ended."""
        held, self._held = self._held, ""
        return held

    def _may_begin(self, tail: str) -> bool:
        return any(stop.startswith(tail) for stop in self._stops)


class PrefixCache:
    """Which prefix blocks are warm: least recently used out first, a chain's end before its beginning."""

    def __init__(self, capacity_tokens: int) -> None:
        self._capacity_blocks = capacity_tokens // TOKENS_PER_BLOCK
        self._blocks: OrderedDict[bytes, None] = OrderedDict()
        self._held: set[bytes] = set()
        self._evicted: set[bytes] = set()

    @property
    def free_tokens(self) -> int:
        return (self._capacity_blocks - len(self._blocks)) * TOKENS_PER_BLOCK

    def cached_tokens(self, names: Sequence[bytes], prompt_tokens: int) -> int:
        """Prompt tokens that need no prefill; the last one always does, it yields the first output."""
        warm = matched_blocks(names, frozenset(name for name in names if name in self._blocks))
        return min(warm * TOKENS_PER_BLOCK, prompt_tokens - 1)

    def insert(self, names: Sequence[bytes]) -> None:
        """Holds the blocks that fit, as the most recently used ones."""
        for name in reversed(names[: self._capacity_blocks]):
            if name not in self._blocks:
                self._blocks[name] = None
                self._note(name, self._held, self._evicted)
            self._blocks.move_to_end(name)
        while len(self._blocks) > self._capacity_blocks:
            name, _ = self._blocks.popitem(last=False)
            self._note(name, self._evicted, self._held)

    def clear(self) -> None:
        """Everything is gone, as after a crash."""
        for name in self._blocks:
            self._note(name, self._evicted, self._held)
        self._blocks.clear()

    def changes(self) -> CacheDelta | None:
        """Held and evicted since the last call; None when nothing changed."""
        if not self._held and not self._evicted:
            return None
        delta = CacheDelta(tuple(self._held), tuple(self._evicted), names_digest(self._blocks))
        self._held, self._evicted = set(), set()
        return delta

    def full(self) -> CacheDelta:
        return CacheDelta(held=tuple(self._blocks), digest=names_digest(self._blocks), full=True)

    @staticmethod
    def _note(name: bytes, into: set[bytes], out_of: set[bytes]) -> None:
        if name in out_of:
            out_of.discard(name)
        else:
            into.add(name)


def decode_speed(curve: Sequence[tuple[int, float]], batch: int) -> float:
    """Tokens/s per sequence at `batch`; a step's time is linear between the curve's points, flat outside."""
    below = max((point for point in curve if point[0] <= batch), default=curve[0])
    above = min((point for point in curve if point[0] >= batch), default=curve[-1])
    if above[0] <= below[0]:
        return below[1]
    share = (batch - below[0]) / (above[0] - below[0])
    return 1.0 / ((1.0 - share) / below[1] + share / above[1])
