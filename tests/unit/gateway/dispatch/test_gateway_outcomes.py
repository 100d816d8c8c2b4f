"""Outcomes: what is kept of an answer, who is drawn, and that the log is bounded and holds no text."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from dispatch_rig import NODES, Rig, answer, ask
from gateway_fakes import VARIANT, announcement

from gateway.dispatch import Levels
from gateway.dispatch.caller import Client
from gateway.dispatch.outcomes import Outcomes
from gateway.dispatch.rates import Rates
from gateway.telemetry import OutcomeLog, OutcomeRow, PairRow, VerdictRow
from tidegate.routing.domain import Code, Finished, NodeLoad, ServeError
from tidegate.routing.naming import ModelName, ModelNames, Portion


class Kept:
    """Implements OutcomeWriter."""

    def __init__(self) -> None:
        self.rows: list[OutcomeRow | PairRow | VerdictRow] = []

    def write(self, row: OutcomeRow | PairRow | VerdictRow) -> None:
        self.rows.append(row)

    def close(self) -> None:
        pass


async def test_answers_are_kept_and_drawn_by_chance_alone() -> None:
    kept, chances = Kept(), iter([0.3, 0.01])
    best = iter(["d-one", "d-other"])
    outcomes = Outcomes(
        kept, share=0.02, rng=lambda: next(chances), complexity="model", best=lambda: next(best)
    )
    rig = Rig(n1=[answer(), answer()], outcomes=outcomes)
    wanted = []
    for name in ("r1", "r2"):
        *_, last = await rig.run(ask(name))
        assert isinstance(last, Finished)
        wanted.append(last.feedback_wanted)
    assert wanted == [False, True]
    rig.dispatcher.feedback("r2", Client("t"), worse=True)
    first, second, verdict = kept.rows
    assert isinstance(first, OutcomeRow)
    assert isinstance(second, OutcomeRow)
    assert (first.drawn, second.drawn, second.propensity, second.difficulty) == (False, True, 0.02, 0.5)
    assert (second.request, second.tier, second.data_class) == ("r2", "edge", "public")
    assert (first.complexity, first.best, second.best) == ("model", "d-one", "d-other")
    assert verdict == VerdictRow("r2", "t", 0.0, True, "feedback")


async def test_a_request_that_fails_is_no_answer() -> None:
    kept = Kept()
    rig = Rig(n1=[], outcomes=Outcomes(kept, share=1.0, rng=lambda: 0.0))
    with pytest.raises(ServeError):
        await rig.run(ask())
    assert kept.rows == []


async def test_without_a_log_nothing_is_wanted_and_verdicts_are_refused() -> None:
    rig = Rig(n1=[answer()])
    *_, last = await rig.run(ask())
    assert isinstance(last, Finished)
    assert not last.feedback_wanted
    with pytest.raises(ServeError, match=r"quality\.outcome_log"):
        rig.dispatcher.feedback("r1", Client(), worse=False)


@pytest.mark.looptime
@pytest.mark.parametrize(("order", "judged", "other", "against_best"), [
    (("tide-7b", "tide-1b"), "tide-1b", "tide-7b", True),
    (("tide-1b", "tide-7b"), "tide-7b", "tide-1b", True),
    (("else", "tide-1b", "tide-7b"), "tide-7b", "tide-1b", True),
])  # fmt: skip
async def test_of_a_pair_the_one_that_is_not_the_best_is_to_be_judged(
    order: tuple[str, ...], judged: str, other: str, against_best: bool
) -> None:
    kept = Kept()
    large = replace(VARIANT, model="tide-7b", digest="e" * 64, aliases=(), perplexity=None)
    digests = {"tide-1b": VARIANT.digest, "tide-7b": large.digest}
    names = ModelNames([ModelName("name", ("tide-1b",), shadow=Portion("tide-7b", 0.5))])
    outcomes = Outcomes(
        kept,
        share=1.0,
        rng=lambda: 0.5,
        wall_clock=lambda: 7.0,
        complexity="model",
        best=lambda: digests[other],
    )
    rig = Rig(
        levels=Levels(names=names), outcomes=outcomes, order=order, n1=[answer()] * 9, n2=[answer()] * 9
    )
    rig.fleet.register(announcement("n2", variant=large), NODES["n2"], 2)
    rig.fleet.heartbeat("n2", NodeLoad())
    rig.fleet.rtt("n2", 1.0)
    for number in range(8):
        await rig.run(ask(f"r{number}", model="name", data_class="internal"))
        await asyncio.sleep(5.0)
    pairs = [row for row in kept.rows if isinstance(row, PairRow)]
    assert 0 < len(pairs) < 8
    for pair in pairs:
        assert (pair.variant, pair.paired_with) == (digests[judged], digests[other])
        assert (pair.model, pair.propensity, pair.against_best) == (judged, 0.5, against_best)
        assert (pair.at_s, pair.difficulty, pair.data_class) == (7.0, 0.5, "internal")
        assert (pair.complexity, pair.best) == ("model", digests[other])
    rig.dispatcher.feedback(pairs[0].request, Client("t"), worse=True, variant=pairs[0].variant)
    assert kept.rows[-1] == VerdictRow(pairs[0].request, "t", 7.0, True, "pair", pairs[0].variant)


def test_verdicts_come_no_faster_than_each_key_may() -> None:
    now_s, kept = 100.0, Kept()
    outcomes = Outcomes(kept, rates=Rates("verdicts", 30.0, lambda: now_s))
    one, other = Client(key="one"), Client(key="other")
    for _ in range(30):
        outcomes.verdict("r", one, worse=False)
    with pytest.raises(ServeError) as caught:
        outcomes.verdict("r", one, worse=False)
    error = caught.value
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert error.retry_after_ms == pytest.approx(2000.0)
    outcomes.verdict("r", other, worse=False)
    assert len(kept.rows) == 31
    now_s += 2.0
    outcomes.verdict("r", one, worse=False)
    with pytest.raises(ServeError):
        outcomes.verdict("r", one, worse=False)


def row(request: str) -> OutcomeRow:
    return OutcomeRow(
        request, "t", 1.0, 0.123456, "d1", "m", "edge", "public", 0.000_04, True, "model", "d-best"
    )


def test_the_log_is_rotated_and_a_full_disk_costs_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "outcomes.jsonl"
    log = OutcomeLog(path, max_bytes=600, files=2)
    for number in range(20):
        log.write(row(f"r{number}"))
    log.write(VerdictRow("r19", "t", 2.0, False, "feedback"))
    log.close()
    assert sorted(p.name for p in path.parent.iterdir()) == [f"outcomes.jsonl{s}" for s in ("", ".1", ".2")]
    first = json.loads((path.parent / "outcomes.jsonl.2").read_text().splitlines()[0])
    assert (first["difficulty"], first["propensity"]) == (0.1235, 0.000_04)
    assert (first["complexity"], first["best"]) == ("model", "d-best")
    assert all(p.stat().st_size <= 600 for p in path.parent.iterdir())
    last = json.loads(path.read_text().splitlines()[-1])
    assert last == {
        "v": 1,
        "kind": "verdict",
        "request": "r19",
        "tenant": "t",
        "at_s": 2.0,
        "worse": False,
    } | {"source": "feedback", "variant": ""}
    full = OutcomeLog(Path("/dev/full"), max_bytes=0)
    full.write(row("lost"))
    assert full.lost == 1
    full.close()
