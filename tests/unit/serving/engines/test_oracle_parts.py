from __future__ import annotations

import pytest

from serving.engines.oracle_parts import (
    TOKENS_PER_BLOCK,
    PrefixCache,
    StopFilter,
    TokenChain,
    decode_speed,
    oracle_length,
    oracle_text,
    oracle_tokens,
    token_text,
)
from tidegate.routing.prefix import names_digest


def through(stops: tuple[str, ...], *parts: str) -> tuple[str, bool]:
    """All text that a filter lets out, and whether a stop string was met."""
    stop_filter = StopFilter(stops)
    out = ""
    for part in parts:
        text, stopped = stop_filter.push(part)
        out += text
        if stopped:
            return out, True
    return out + stop_filter.flush(), False


def test_tokens_depend_on_the_model_the_input_and_every_token_before() -> None:
    tokens = oracle_tokens("m", b"input", 8)
    assert tokens == oracle_tokens("m", b"input", 20)[:8]
    assert tokens != oracle_tokens("n", b"input", 8)
    assert tokens != oracle_tokens("m", b"inpux", 8)
    chain = TokenChain("m", b"input")
    chain.absorb(tokens[0] ^ 1)
    assert chain.next() != tokens[1]


def test_a_chain_goes_on_after_absorbed_tokens() -> None:
    tokens = oracle_tokens("m", b"input", 8)
    chain = TokenChain("m", b"input")
    for token in tokens[:5]:
        chain.absorb(token)
    assert [chain.next() for _ in range(3)] == list(tokens[5:])


def test_text_is_the_tokens_words() -> None:
    assert token_text(0x1A2B) == "t1a2b "
    words = oracle_text("m", b"x", 3).split()
    assert tuple(int(word[1:], 16) for word in words) == oracle_tokens("m", b"x", 3)


def test_natural_lengths_stay_within_their_bounds_and_differ() -> None:
    lengths = {oracle_length("m", str(number).encode(), (3, 6)) for number in range(50)}
    assert lengths == {3, 4, 5, 6}
    assert oracle_length("m", b"x", (4, 4)) == 4


@pytest.mark.parametrize(
    ("stops", "parts", "expected"),
    [
        ((), ("ab", "cd"), ("abcd", False)),
        (("",), ("ab",), ("ab", False)),
        (("cd",), ("abcde",), ("ab", True)),
        (("cd",), ("abc", "de"), ("ab", True)),
        (("cde",), ("abc", "d", "e", "f"), ("ab", True)),
        (("cdx",), ("abc", "d", "e"), ("abcde", False)),
        (("aab",), ("a", "a", "a", "b"), ("a", True)),
        (("zz", "b"), ("abzz",), ("a", True)),
        (("xyz",), ("ab", "xy"), ("abxy", False)),
        (("é!",), ("caf", "é", "!"), ("caf", True)),
    ],
)
def test_stop_strings(stops: tuple[str, ...], parts: tuple[str, ...], expected: tuple[str, bool]) -> None:
    assert through(stops, *parts) == expected


def test_text_that_cannot_begin_a_stop_string_is_not_held_back() -> None:
    stop_filter = StopFilter(["END"])
    assert stop_filter.push("word ") == ("word ", False)
    assert stop_filter.push("E") == ("", False)
    assert stop_filter.push("xE") == ("Ex", False)
    assert stop_filter.flush() == "E"


def names(*words: str) -> tuple[bytes, ...]:
    return tuple(word.encode().ljust(16, b".") for word in words)


def test_cached_tokens_are_the_leading_held_blocks_but_never_the_whole_prompt() -> None:
    cache = PrefixCache(10 * TOKENS_PER_BLOCK)
    assert cache.cached_tokens(names("a", "b"), 1000) == 0
    cache.insert(names("a", "b"))
    assert cache.cached_tokens(names("a", "b", "c"), 1000) == 2 * TOKENS_PER_BLOCK
    assert cache.cached_tokens(names("x", "b"), 1000) == 0
    assert cache.cached_tokens(names("a", "b"), 2 * TOKENS_PER_BLOCK) == 2 * TOKENS_PER_BLOCK - 1
    assert cache.free_tokens == 8 * TOKENS_PER_BLOCK


def test_the_least_recently_used_chain_leaves_from_its_end() -> None:
    cache = PrefixCache(4 * TOKENS_PER_BLOCK)
    cache.insert(names("a", "b"))
    cache.insert(names("c", "d"))
    cache.insert(names("a", "b"))
    cache.insert(names("e"))
    assert set(cache.full().held) == set(names("a", "b", "c", "e"))


def test_changes_tell_each_block_once_and_carry_the_digest_of_what_is_held() -> None:
    cache = PrefixCache(2 * TOKENS_PER_BLOCK)
    assert cache.changes() is None
    cache.insert(names("a", "b"))
    first = cache.changes()
    assert first is not None
    assert (set(first.held), first.evicted, first.full) == (set(names("a", "b")), (), False)
    assert cache.changes() is None
    cache.insert(names("c"))
    second = cache.changes()
    assert second is not None
    assert (second.held, second.evicted) == (names("c"), names("b"))
    assert second.digest == names_digest(names("a", "c"))
    cache.clear()
    third = cache.changes()
    assert third is not None
    assert (set(third.evicted), third.digest) == (set(names("a", "c")), 0)


def test_a_block_that_came_and_went_between_two_reports_is_not_reported() -> None:
    cache = PrefixCache(TOKENS_PER_BLOCK)
    cache.insert(names("a"))
    cache.insert(names("b"))
    delta = cache.changes()
    assert delta is not None
    assert (delta.held, delta.evicted) == (names("b"), ())


def test_a_step_s_time_is_linear_between_points_and_flat_outside() -> None:
    curve = ((1, 50.0), (4, 20.0), (8, 10.0))
    steps_ms = [1000.0 / decode_speed(curve, batch) for batch in (1, 2, 4, 6, 8, 20)]
    assert steps_ms == pytest.approx([20.0, 30.0, 50.0, 75.0, 100.0, 100.0])
