from __future__ import annotations

import pytest

from serving.engines.openai_http.sequence import Sequence
from serving.engines.openai_http.speeds import SpeedBook, learn_from
from serving.engines.openai_http.wire import UpstreamRequest
from tidegate.routing.domain import AttemptKey, InputKind, Sampling, Speeds, Usage, Work

PRIOR = Speeds(1000.0, ((1, 50.0), (8, 20.0)))


def test_the_prior_is_believed_and_ages() -> None:
    book = SpeedBook(PRIOR, now_s=10.0)
    speeds = book.speeds(12.5)
    assert speeds.prefill_tokens_per_s == pytest.approx(1000.0)
    assert speeds.decode == ((1, pytest.approx(50.0)), (8, pytest.approx(20.0)))
    assert speeds.age_ms == pytest.approx(2500.0)


def test_real_work_wins_over_the_prior() -> None:
    book = SpeedBook(PRIOR, now_s=0.0)
    for n in range(40):
        book.prefilled(500, 2.0, now_s=n)
        book.decoded(100, 1.0, 9, now_s=n)
    speeds = book.speeds(40.0)
    assert speeds.prefill_tokens_per_s == pytest.approx(250.0, rel=0.02)
    assert speeds.decode == ((1, pytest.approx(50.0)), (8, pytest.approx(100.0, rel=0.02)))
    assert speeds.age_ms == pytest.approx(1000.0)


def test_a_new_batch_size_starts_from_the_prior_below_it() -> None:
    book = SpeedBook(PRIOR, now_s=0.0)
    book.decoded(1, 0.05, 20, now_s=1.0)
    assert dict(book.speeds(1.0).decode)[16] == pytest.approx(20.0)
    book.decoded(1, 0.02, 5, now_s=1.0)
    assert dict(book.speeds(1.0).decode)[4] == pytest.approx(50.0)


@pytest.mark.parametrize("prior", [Speeds(0.0, ((1, 5.0),)), Speeds(5.0, ()), Speeds(5.0, ((1, 0.0),))])
def test_a_useless_prior_is_refused(prior: Speeds) -> None:
    with pytest.raises(ValueError):
        SpeedBook(prior, now_s=0.0)


def sequence(**more: object) -> Sequence:
    work = Work(AttemptKey("r", 1), "t", "d", InputKind.TEXT, b"x", Sampling(), 50)
    made = Sequence(work, UpstreamRequest("/completions", {}), arrived_s=0.0, prompt_tokens=100)
    for name, value in {"started_s": 1.0, "first_s": 2.0, "last_s": 4.0, "deltas": 21, **more}.items():
        setattr(made, name, value)
    return made


def learned(made: Sequence) -> tuple[bool, bool]:
    """Whether prefill and decode were learned."""
    book = SpeedBook(PRIOR, now_s=0.0)
    learn_from(made, book, peers_now=1, now_s=5.0)
    speeds = book.speeds(5.0)
    return speeds.prefill_tokens_per_s != pytest.approx(1000.0), speeds.decode[0][1] != pytest.approx(50.0)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (sequence(), (True, True)),
        (sequence(first_s=None), (False, False)),
        (sequence(prompt_tokens=8), (False, True)),
        (sequence(usage=Usage(100, 21, 95)), (False, True)),
        (sequence(upstream_waiting=2), (False, True)),
        (sequence(deltas=3), (True, False)),
        (sequence(last_s=2.0), (True, False)),
    ],
    ids=["whole", "no output", "short prompt", "cached", "waited upstream", "short answer", "buffered"],
)
def test_only_what_measures_something_is_learned(made: Sequence, expected: tuple[bool, bool]) -> None:
    assert learned(made) == expected
