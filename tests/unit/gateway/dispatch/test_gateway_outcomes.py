"""Outcomes: what is kept of an answer, who is drawn, and that the log is bounded and holds no text."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from dispatch_rig import Rig, answer, ask

from gateway.dispatch.caller import Client
from gateway.dispatch.outcomes import Outcomes
from gateway.state.certificates import Certificates
from gateway.telemetry import OutcomeLog, OutcomeRow, VerdictRow
from tidegate.routing.domain import Finished, ServeError


class Kept:
    """Implements OutcomeWriter."""

    def __init__(self) -> None:
        self.rows: list[OutcomeRow | VerdictRow] = []

    def write(self, row: OutcomeRow | VerdictRow) -> None:
        self.rows.append(row)

    def close(self) -> None:
        pass


async def test_answers_are_kept_and_drawn_by_chance_alone() -> None:
    kept, chances = Kept(), iter([0.3, 0.01])
    rig = Rig(n1=[answer(), answer()], outcomes=Outcomes(kept, share=0.02, rng=lambda: next(chances)))
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


def row(request: str) -> OutcomeRow:
    return OutcomeRow(request, "t", 1.0, 0.123456, "d1", "m", "edge", "public", 0.02, True)


def test_the_log_is_rotated_and_a_full_disk_costs_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "outcomes.jsonl"
    log = OutcomeLog(path, max_bytes=600, files=2)
    for number in range(20):
        log.write(row(f"r{number}"))
    log.write(VerdictRow("r19", "t", 2.0, False, "feedback"))
    log.close()
    assert sorted(p.name for p in path.parent.iterdir()) == [f"outcomes.jsonl{s}" for s in ("", ".1", ".2")]
    assert all(p.stat().st_size <= 600 for p in path.parent.iterdir())
    last = json.loads(path.read_text().splitlines()[-1])
    assert last == {
        "v": 1,
        "kind": "verdict",
        "request": "r19",
        "tenant": "t",
        "at_s": 2.0,
        "worse": False,
    } | {"source": "feedback"}
    full = OutcomeLog(Path("/dev/full"), max_bytes=0)
    full.write(row("lost"))
    assert full.lost == 1
    full.close()


def test_certificates_come_into_force_and_go(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    assert certificates.by_variant == {}
    path = tmp_path / "current.json"

    def put(text: str) -> None:
        draft = tmp_path / "draft"
        draft.write_text(text)
        os.replace(draft, path)
        certificates.refresh()

    put(json.dumps({"variants": {"d1": {"threshold": 0.4, "worse_share": 0.02}, "d2": {"threshold": None}}}))
    assert {d: c.threshold for d, c in certificates.by_variant.items()} == {"d1": 0.4}
    for bad in ("no json", "[]", '{"variants": {"d1": {"threshold": 7, "worse_share": 0.02}}}'):
        put(bad)
        assert certificates.by_variant == {}
    put(json.dumps({"variants": {"d1": {"threshold": 0.4, "worse_share": 0.02}}}))
    assert "d1" in certificates.by_variant
    path.unlink()
    certificates.refresh()
    assert certificates.by_variant == {}
