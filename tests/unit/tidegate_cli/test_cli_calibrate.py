"""`tidegate calibrate`: from a log to certificates, versions, and back."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

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
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[-2:]] == ["yes", "0"]
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
    (small,) = log.variants.values()
    assert [each.worse for each in small.seen] == [0.0, 1.0, 1.0, 1.0, 1.0, None]
    assert small.silent == 3


def test_rotated_files_come_first_young_answers_and_foreign_lines_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", answer(3, False), "not ours", answer(9, True), answer(4, False))
    write(tmp_path / "log.jsonl.1", answer(2, False, difficulty=0.2))
    write(tmp_path / "log.jsonl.2", answer(1, False, difficulty=0.1), answer(2, False, difficulty=7))
    log = read([path], until_s=5.0)
    assert [each.difficulty for each in log.variants["d-small"].seen][:2] == [0.1, 0.2]
    assert (log.answers, log.too_young, log.unusable) == (4, 1, 2)


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
    assert {d: [s.worse for s in v.seen] for d, v in alone.variants.items()} == {
        "d-large": [0.0],
        "d-small": [1.0, 0.0, 1.0],
    }
    both = read([path], until_s=100.0, pairs=True)
    assert {d: [s.worse for s in v.seen] for d, v in both.variants.items()} == {
        "d-new": [1.0, 1.0, 1.0],
        "d-small": [0.0, 1.0],
    }
    assert (both.pairs, both.unusable) == (3, 0)
    assert both.variants["d-new"].floor == 1.0
    assert both.variants["d-new"].silent == 2  # r1 was never compared; "page" bears no answer of its own


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
