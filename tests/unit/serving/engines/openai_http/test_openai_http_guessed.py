"""What a silent server probably holds: the latest that fits, not for long; less after a wrong guess."""

from __future__ import annotations

from aiohttp import web
from openai_http_rig import running, work
from openai_stub import DONE, Reply, Stub, finish

from serving.engines.openai_http.guessed import GuessedPrefixes
from tidegate.routing.domain import CacheDelta
from tidegate.routing.prefix_index import PrefixIndex


class Now:
    s = 0.0

    def __call__(self) -> float:
        return self.s


def names(letter: str, count: int) -> tuple[bytes, ...]:
    return tuple(f"{letter}{n:015}".encode() for n in range(count))


def test_the_latest_that_fit_are_warm_and_a_chain_ends_from_its_end() -> None:
    guessed = GuessedPrefixes(300.0, Now())
    guessed.computed(names("a", 4), 128 * 6)
    guessed.computed(names("b", 4), 128 * 6)
    assert guessed.warm_tokens(names("b", 4), 1000) == 512
    assert guessed.warm_tokens(names("a", 4), 1000) == 256
    assert guessed.warm_tokens(names("b", 4), 512) == 511  # the last token is always computed
    assert guessed.warm_tokens(names("c", 4), 1000) == 0


def test_what_was_not_used_for_long_is_no_longer_taken_to_be_warm() -> None:
    now = Now()
    guessed = GuessedPrefixes(60.0, now)
    guessed.computed(names("a", 2), 10_000)
    now.s = 40.0
    guessed.computed(names("b", 2), 10_000)
    now.s = 61.0
    assert guessed.warm_tokens(names("a", 2), 1000) == 0
    assert guessed.warm_tokens(names("b", 2), 1000) == 256
    nothing = GuessedPrefixes(0.0, now)
    nothing.computed(names("a", 2), 10_000)
    assert nothing.changes() is None


def test_reports_keep_an_index_right() -> None:
    now, index = Now(), PrefixIndex()
    guessed = GuessedPrefixes(60.0, now)
    for step in range(40):
        now.s += 7.0
        guessed.computed(names("abcdef"[step % 6], 1 + step % 5), 128 * 12)
        if step % 3 == 0 and (delta := guessed.changes()) is not None:
            assert index.apply(delta)
            assert index.view() == set(guessed.full().held)
    guessed.clear()
    delta = guessed.changes()
    assert delta is not None
    assert index.apply(delta)
    assert not index.view()


def test_a_server_that_found_less_is_taken_to_hold_less_until_guesses_are_right_again() -> None:
    guessed = GuessedPrefixes(300.0, Now())

    def fitting() -> int:
        guessed.computed(names("x", 100), 12_800)
        return guessed.warm_tokens(names("x", 100), 50_000) // 128

    assert fitting() == 100
    guessed.heard(5000, 0, sure=False)  # it never said anything, so 0 says nothing
    assert fitting() == 100
    for _ in range(3):
        guessed.heard(5000, 300, sure=False)
    assert fitting() == 34
    guessed.heard(5000, 0, sure=False)  # now it does
    assert fitting() == 24
    for _ in range(40):
        guessed.heard(3000, 3000, sure=False)
    assert fitting() == 100


async def says_nothing_of_tokens(request: web.Request, reply: Reply) -> web.StreamResponse:
    await reply.words("one ", "two")
    await reply.send(finish(), DONE)
    return await reply.end()


async def test_the_engine_guesses_and_says_so_in_its_stamps(stub: Stub) -> None:
    stub.script = says_nothing_of_tokens
    async with running(stub) as rig:
        cached = []
        for _ in range(2):
            asked = work("secret " * 200, prefix_hashes=names("a", 2))
            await rig.run(asked)
            cached += [o.first_token.cached_tokens for o in rig.outputs[asked.key] if o.first_token]
        assert cached == [0, 256]
        delta = rig.engine.cache_changes()
        assert delta is not None
        assert set(delta.held) == set(names("a", 2))
        rig.engine.on_health(False)  # the server is gone, and with it what it held
        assert rig.engine.cache_full() == CacheDelta(full=True)
