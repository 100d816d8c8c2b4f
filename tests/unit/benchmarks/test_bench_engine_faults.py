from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench_engine_faults import kept
from benchmarks.common import CannotMeasure, row
from benchmarks.engine.watched import Watched
from benchmarks.engine_faults.blows import Blows, rows_of
from benchmarks.engine_faults.cancels import Plan, below_best, forced_gaps, measure_cancels, parted
from benchmarks.engine_faults.daemon import Told
from benchmarks.engine_faults.pieces import Cancels, Pieces
from serving.engines.oracle import OracleEngine, OracleSettings
from tidegate.routing.domain import AttemptKey, Finish, FinishReason, SequenceOutput, TokenLogprob


def test_where_two_answers_part() -> None:
    assert parted((1, 2, 3), (1, 2, 3)) is None
    assert parted((1, 2, 3), (1, 5, 3)) == 1
    assert parted((1, 2, 3), (1, 2)) == 2
    assert parted((), (7,)) == 0


def test_a_token_is_judged_against_the_likeliest() -> None:
    top = (TokenLogprob(4, b"a", -0.5), TokenLogprob(9, b"b", -0.75))
    judged = TokenLogprob(4, b"a", -0.5, top)
    assert below_best(judged, 4) == 0.0
    assert below_best(judged, 9) == 0.25
    assert below_best(judged, 5) == float("inf")


def test_only_the_watchdogs_limit_makes_the_bar_longer() -> None:
    seen = {"kill -9": Blows([1.4, 1.6], 8, 0), "SIGSEGV": Blows(), "SIGSTOP": Blows([3.4], 8, 1)}
    rows = {each.name: each for each in rows_of("blows", seen, 0.5, 2.0)}
    killed = rows["blows: kill -9, 2 times: next request served, worst"]
    assert (killed.value, killed.bar, killed.holds) == (1.6, "<= 1.5 s", False)
    assert rows["blows: SIGSTOP, 1 times, watchdog 2 s: next request served, worst"].bar == "<= 3.5 s"
    assert not rows["blows: SIGSTOP: of 8 requests not ended by exactly one engine_hung"].holds
    assert not any("SIGSEGV" in name for name in rows)


def test_a_stream_tells_its_error_and_what_came_after_it() -> None:
    told = Told()
    for line in (
        b'data: {"choices": []}\n',
        b"\n",
        b'data: {"error": {"code": "engine_hung"}}\n',
        b"data: [DONE]\n",
    ):
        told.take(line)
    assert (told.pieces, told.errors, told.after, told.whole) == (1, ["engine_hung"], 0, False)
    told.take(b'data: {"choices": []}\n')
    assert told.after == 1


def test_rows_of_other_parts_are_kept(tmp_path: Path) -> None:
    rows = [row("blows: a", 1.0, "s"), row("daemon: b", 2.0, "s", bar=1.0), row("busy cores", 1.0, "cores")]
    path = tmp_path / "result.json"
    path.write_text(json.dumps([{"name": r.name, "value": r.value, "unit": r.unit, "bar": r.bar,
                                 "holds": r.holds} for r in rows]))  # fmt: skip
    assert kept(path, ["daemon"]) == [rows[1]]
    assert kept(path, []) == kept(tmp_path / "none.json", ["daemon"]) == []


def test_outputs_that_begin_elsewhere_are_a_gap_or_a_double() -> None:
    watched, key = Watched(OracleEngine(OracleSettings())), AttemptKey("r", 1)
    for second, well in ((2, True), (1, False), (3, False)):
        watched.outputs[key] = [SequenceOutput(key, 0, 2), SequenceOutput(key, second, 1)]
        assert watched.contiguous(key) is well


@pytest.mark.parametrize("wrong", [False, True])
def test_streams_beside_cancels_are_compared_with_the_oracle(
    monkeypatch: pytest.MonkeyPatch, wrong: bool
) -> None:
    if wrong:
        monkeypatch.setattr("benchmarks.engine_faults.cancels.oracle_tokens", lambda *_: (1, 2, 3))
    engine = OracleEngine(OracleSettings(prefill_tokens_per_s=1e6, decode=((1, 2000.0),)))
    plan = Plan("oracle", tries=5, tokens=30, moment_s=0.003, known=True)
    rows = asyncio.run(measure_cancels(engine, plan, random.Random(1)))
    share = next(each for each in rows if "byte-identical" in each.name)
    assert (share.value, share.holds) == ((0.0, False) if wrong else (1.0, True))
    assert next(each for each in rows if "after the cancel" in each.name).holds


def test_cancels_go_on_where_an_earlier_piece_ended(tmp_path: Path) -> None:
    plan = Plan("oracle", 4, tokens=60, moment_s=0.005, known=True)
    kept_in = tmp_path / "cancels.json"
    Pieces(kept_in).keep(Cancels(3, 1, [0, 0, 1], [0.1, 0.1, 9.0], 0, 3, 0))
    engine = OracleEngine(OracleSettings(slots=4, prefill_tokens_per_s=20000.0, decode=((1, 500.0),)))
    with pytest.raises(CannotMeasure, match="3 of 4 tries"):
        asyncio.run(measure_cancels(engine, plan, random.Random(1), Pieces(kept_in, -1.0)))
    engine = OracleEngine(OracleSettings(slots=4, prefill_tokens_per_s=20000.0, decode=((1, 500.0),)))
    rows = asyncio.run(measure_cancels(engine, plan, random.Random(1), Pieces(kept_in)))
    assert rows[0].name.startswith("oracle: 4 cancels")
    assert rows[0].value == 1
    assert not kept_in.exists()


class Judge(Watched):
    """Answers at once, with the odds of the token after `after` where the length leaves room for one."""

    def __init__(self) -> None:
        super().__init__(OracleEngine(OracleSettings()))
        self.asked: list[tuple[int, ...]] = []

    def submit(self, text: str, tokens: int, **options: Any) -> AttemptKey:
        key = AttemptKey(f"j{len(self.asked)}", 1)
        self.asked.append(options["after"])
        top = (TokenLogprob(7, b"", -0.5), TokenLogprob(9, b"", -0.6))
        odds = (TokenLogprob(7, b"", -0.5, top),) if tokens == len(options["after"]) + 1 else ()
        self.outputs[key] = [SequenceOutput(key, 0, logprobs=odds, finish=Finish(FinishReason.LENGTH))]
        return key


def test_streams_that_part_are_judged_token_by_token() -> None:
    judge, seen = Judge(), Cancels()
    seen.differing.append(("Hi", (1, 2, 9, 7, 5), 2))
    gaps = asyncio.run(forced_gaps(judge, seen))
    assert judge.asked == [(1, 2), (1, 2, 9), (1, 2, 9, 7)]
    assert gaps == [pytest.approx(0.1), 0.0, float("inf")]
