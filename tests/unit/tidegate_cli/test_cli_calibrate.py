"""`tidegate calibrate`: from a log to certificates, versions, and back."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tidegate_cli.calibrate import outcomes
from tidegate_cli.calibrate.outcomes import read
from tidegate_cli.main import main


def answer(number: int, drawn: bool, **changes: Any) -> dict[str, Any]:
    return {
        "v": 1,
        "kind": "answer",
        "request": f"r{number}",
        "tenant": "t",
        "at_s": float(number),
        "difficulty": (number * 7 % 100) / 100,
        "variant": "d-small",
        "model": "m",
        "propensity": 0.1,
        "drawn": drawn,
        "complexity": "model",
        "best": "d-large",
    } | changes


def verdict(request: str, worse: bool = False, tenant: str = "t") -> dict[str, Any]:
    return {"v": 1, "kind": "verdict", "request": request, "tenant": tenant, "worse": worse}


def write(path: Path, *rows: dict[str, Any] | str) -> Path:
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows))
    return path


def log_of(path: Path, count: int, *, judged: bool) -> Path:
    rng = random.Random(1)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        rows.append(answer(number, rng.random() < 0.1))
        if rows[-1]["drawn"] and judged:
            rows.append(verdict(f"r{number}"))
    return write(path, *rows)


def test_verdicts_make_a_version_silence_makes_none_and_an_older_one_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    base = ["calibrate", "--store", str(store)]
    assert main([*base, "--log", str(log_of(tmp_path / "good.jsonl", 4000, judged=True))]) == 0
    assert "certified" in capsys.readouterr().out
    current = json.loads((store / "current.json").read_text())
    assert (current["version"], current["variants"]["d-small"]["threshold"]) == (1, 1.0)
    silent = log_of(tmp_path / "silent.jsonl", 4000, judged=False)
    assert main([*base, "--log", str(silent), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["version"], told["variants"]["d-small"]["threshold"]) == (2, None)
    assert told["variants"]["d-small"]["silent"] == told["variants"]["d-small"]["labels"] > 300
    assert main([*base, "--rollback", "1"]) == 0
    assert main([*base, "--list"]) == 0
    assert [line.split()[1:] for line in capsys.readouterr().out.splitlines()[-2:]] == [
        ["1", "1", "model", "d-large", "yes"],
        ["1", "0", "model", "d-large"],
    ]
    assert json.loads((store / "current.json").read_text())["version"] == 1
    assert main([*base, "--rollback", "9"]) == 1
    assert main([*base, "--log", str(tmp_path / "gone.jsonl")]) == 1


def test_verdicts_are_joined_by_tenant_and_by_the_label_of_an_http_request(tmp_path: Path) -> None:
    path = write(
        tmp_path / "log.jsonl",
        answer(1, True),
        answer(2, True, request="page:7"),
        answer(3, True, request="twice:8"),
        answer(4, True, request="twice:9"),
        answer(5, True),
        answer(6, False),
        verdict("r1", worse=True),
        verdict("r1", worse=False),  # the later one counts
        verdict("page", worse=True),
        verdict("twice", worse=False),  # nobody knows which of them
        verdict("r5", tenant="other"),
        verdict("r6", worse=True),  # not drawn: a complaint is no sample
    )
    log = read([path], until_s=100.0)
    (small,) = log.part.variants.values()
    assert [each.worse for each in small.seen] == [0.0, 1.0, 1.0, 1.0, 1.0, None]
    assert small.silent == 3


def test_rotated_files_come_first_young_answers_and_foreign_lines_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", answer(3, False), "not ours", answer(9, True), answer(4, False))
    write(tmp_path / "log.jsonl.1", answer(2, False, difficulty=0.2))
    write(tmp_path / "log.jsonl.2", answer(1, False, difficulty=0.1), answer(2, False, difficulty=7))
    log = read([path], until_s=5.0)
    assert [each.difficulty for each in log.part.variants["d-small"].seen][:2] == [0.1, 0.2]
    assert (log.part.answers, log.too_young, log.unusable) == (4, 1, 2)
    # A shell's "log.jsonl*" names the rotated ones too, and nothing counts twice.
    assert read([path, *tmp_path.glob("log.jsonl.*")], until_s=5.0).part.answers == 4


def pair(number: int, **changes: Any) -> dict[str, Any]:
    row = answer(number, True) | {"kind": "pair", "variant": "d-new", "propensity": 0.02}
    return row | {"paired_with": "d-large", "against_best": True} | changes


def test_of_a_pair_the_one_beside_the_best_is_judged_and_nothing_counts_twice(
    tmp_path: Path,
) -> None:
    path = write(
        tmp_path / "log.jsonl",
        answer(1, True, variant="d-large"),
        pair(1),
        answer(2, True),
        pair(2),
        answer(3, True),
        pair(3, against_best=False),
        answer(4, True),
        pair(4, request="page:9"),
        verdict("r1", worse=False),  # on the answer that was given: says nothing of the copy
        verdict("r2", worse=True) | {"variant": "d-new"},
        verdict("r3"),
        verdict("page") | {"variant": "d-new"},
    )
    alone = read([path], until_s=100.0)
    assert {d: [s.worse for s in v.seen] for d, v in alone.part.variants.items()} == {
        "d-large": [0.0],
        "d-small": [1.0, 0.0, 1.0],
    }
    both = read([path], until_s=100.0, pairs=True)
    assert {d: [s.worse for s in v.seen] for d, v in both.part.variants.items()} == {
        "d-new": [1.0, 1.0, 1.0],
        "d-small": [0.0, 1.0],
    }
    assert (both.part.pairs, both.unusable) == (3, 0)
    assert both.part.variants["d-new"].floor == 1.0
    assert both.part.variants["d-new"].silent == 2  # r1 was never compared; "page" bears no answer of its own


def test_pairs_certify_a_variant_that_never_served_anybody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = []
    for number in range(400):
        rows += [answer(number, False, variant="d-large"), pair(number)]
        rows.append(verdict(f"r{number}") | {"variant": "d-new"})
    base = ["calibrate", "--dry-run", "--log", str(write(tmp_path / "log.jsonl", *rows))]
    assert main([*base, "--pairs", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["variants"]["d-new"]["threshold"] == 1.0
    assert main(base) == 0
    assert "d-new" not in capsys.readouterr().out


@pytest.mark.parametrize(("away", "best"), [(3, "d-large"), (150, "d-small")])
def test_a_best_node_that_is_away_for_a_moment_revokes_nothing(tmp_path: Path, away: int, best: str) -> None:
    rows = [
        answer(number, True, best="d-small" if number >= 900 else "d-large") for number in range(900 + away)
    ]
    assert read([write(tmp_path / "log.jsonl", *rows)], until_s=1e9).basis == ("model", best)


def test_of_several_models_and_best_variants_only_the_newest_answers_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "NEWEST", 1)
    old = {"complexity": None, "best": None}
    # Replicas' logs follow each other, so the newest answer need not stand last.
    path = write(
        tmp_path / "log.jsonl",
        *(answer(number, True) for number in range(4)),
        *(answer(number + 90, True) for number in range(2)),
        *(answer(number + 10, True, complexity="other") for number in range(5)),
        *(answer(number + 20, True, best="d-larger") for number in range(6)),
        *(answer(number + 30, True, **old) for number in range(7)),
        answer(95, True, complexity=3),
        answer(200, True, complexity="younger than what may be counted"),
    )
    log = read([path], until_s=100.0)
    assert log.basis == ("model", "d-large")
    assert (log.part.answers, log.other_basis, log.no_basis, log.too_young) == (6, 11, 8, 1)
    assert main(["calibrate", "--log", str(path), "--store", str(tmp_path / "s")]) == 0
    out = capsys.readouterr().out
    assert "17 answers are left out: of another complexity model, or beside another best variant" in out
    assert "8 answers are left out: an older gateway named no complexity model and best variant" in out
    assert "by complexity model younger than what may be counted, beside the best variant d-large" in out
    stored = json.loads((tmp_path / "s" / "current.json").read_text())
    assert (stored["complexity"], stored["best"]) == ("younger than what may be counted", "d-large")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "there is none"),
        (["this is no log"], "1 lines could not be used"),
        ([answer(1, True, complexity=None)], "1 answers are left out: an older gateway named no"),
        ([answer(1, True, at_s=9e12)], "1 answers are too young to be counted"),
    ],
)
def test_a_log_without_an_answer_that_counts_revokes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[Any], reason: str
) -> None:
    base = ["calibrate", "--store", str(tmp_path / "store")]
    assert main([*base, "--log", str(log_of(tmp_path / "good.jsonl", 4000, judged=True))]) == 0
    capsys.readouterr()
    assert main([*base, "--log", str(write(tmp_path / "odd.jsonl", *rows))]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"tidegate: no answer in {tmp_path}/odd.jsonl counts, so nothing is stored: ")
    assert reason in told.err
    assert told.err.count("\n") == 1
    assert [p.name for p in sorted((tmp_path / "store").iterdir())] == ["0001.json", "current.json"]


def test_a_log_of_another_fleet_is_stored_only_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["calibrate", "--store", str(tmp_path / "store")]
    assert main([*base, "--log", str(log_of(tmp_path / "good.jsonl", 4000, judged=True))]) == 0
    capsys.readouterr()
    other = [*base, "--log", str(write(tmp_path / "other.jsonl", answer(1, True, variant="d-elsewhere")))]
    assert main(other) == 1
    told = capsys.readouterr().err
    assert "no answer of a variant that version 1 certifies" in told
    assert told.count("\n") == 1
    assert main([*other, "--dry-run"]) == 0
    assert "nothing stored" in capsys.readouterr().out
    assert json.loads((tmp_path / "store" / "current.json").read_text())["version"] == 1
    assert main([*other, "--replace"]) == 0
    assert "  d-small to difficulty 1.0, no more" in capsys.readouterr().out


def test_a_version_that_certifies_less_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["calibrate", "--store", str(tmp_path / "store")]
    whole = log_of(tmp_path / "log.jsonl", 4000, judged=True)
    assert main([*base, "--log", str(whole)]) == 0
    assert main([*base, "--log", str(whole)]) == 0
    assert "certifies less" not in capsys.readouterr().out
    cut = write(tmp_path / "cut.jsonl", *whole.read_text().splitlines()[:500])
    assert main([*base, "--log", str(cut)]) == 0
    out = capsys.readouterr().out
    assert "this certifies less than version 2, which was in force so far:" in out
    assert "  d-small to difficulty 1.0, no more" in out
    assert "another complexity model" not in out
    assert main([*base, "--rollback", "2"]) == 0
    rows = [json.loads(line) | {"complexity": "other"} for line in whole.read_text().splitlines()]
    changed = write(tmp_path / "changed.jsonl", *rows)
    capsys.readouterr()
    assert main([*base, "--log", str(changed), "--worse", "0.05", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    # As far as before, with a promise that is less: also that may meet fewer requests' quality.
    assert told["certified_less"] == [{"variant": "d-small", "before": 1.0, "now": 1.0}]


UNUSABLE: list[dict[str, Any]] = [
    {"at_s": "5"},
    {"at_s": float("nan")},
    {"at_s": True},
    {"at_s": 10**400},
    {"difficulty": "0.5"},
    {"propensity": None},
    {"propensity": 0},
    {"variant": ["d"]},
    {"variant": ""},
    {"drawn": 1},
]


def test_lines_of_any_kind_cost_themselves_only(tmp_path: Path) -> None:
    odd = [answer(number, True) | changes for number, changes in enumerate(UNUSABLE)]
    path = write(tmp_path / "log.jsonl", *odd, "[" * 200_000, "null", '{"kind": []}', answer(50, True))
    log = read([path], until_s=100.0)
    assert (log.part.answers, log.unusable) == (1, len(odd) + 3)


@pytest.mark.parametrize("options", [("--list",), ("--rollback", "1")])
def test_versions_need_a_store_and_a_dry_run_puts_none_in_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    assert main(["calibrate", "--dry-run", *options]) == 1
    assert capsys.readouterr().err.startswith("tidegate: --store FOLDER says where certificates are kept")
    store = tmp_path / "store"
    base = ["calibrate", "--store", str(store)]
    log = ["--log", str(log_of(tmp_path / "good.jsonl", 4000, judged=True))]
    assert main([*base, *log]) == main([*base, *log]) == 0
    assert main([*base, "--dry-run", *options]) == int("--rollback" in options)
    assert json.loads((store / "current.json").read_text())["version"] == 2


@pytest.mark.parametrize("text", ['{"version": 3}', "[1]", "no json", "[" * 200_000, '{"variants": [1]}'])
def test_a_file_that_is_no_version_is_listed_as_such_and_never_in_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    store = tmp_path / "store"
    base = ["calibrate", "--store", str(store)]
    assert main([*base, "--log", str(log_of(tmp_path / "good.jsonl", 4000, judged=True))]) == 0
    (store / "0003.json").write_text(text)
    assert main([*base, "--list"]) == 0
    assert "cannot be read" in capsys.readouterr().out.splitlines()[-1]
    assert main([*base, "--rollback", "3"]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"tidegate: {store}/0003.json is no list of certificates: ")
    assert told.count("\n") == 1
    assert json.loads((store / "current.json").read_text())["version"] == 1
    # Nor does one in force that cannot be read end anything: the next version replaces it.
    (store / "current.json").write_text(text)
    assert main([*base, "--list"]) == 0
    assert main([*base, "--log", str(tmp_path / "good.jsonl")]) == 0
    assert json.loads((store / "current.json").read_text())["version"] == 4


def test_an_older_tools_version_comes_back_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = {"version": 1, "variants": {"d-small": {"threshold": 1.0, "worse_share": 0.02}}}
    write(tmp_path / "0001.json", old)
    assert main(["calibrate", "--store", str(tmp_path), "--rollback", "1"]) == 0
    assert "so gateways take nothing of it" in capsys.readouterr().out


@pytest.mark.parametrize("hours", ["nan", "inf", "-1", "soon"])
def test_settle_hours_are_a_number_from_zero_on(hours: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["calibrate", "--dry-run", "--log", "x", f"--settle-hours={hours}"])
    assert ended.value.code == 2
    assert "--settle-hours" in capsys.readouterr().err
