"""Training: what is learned, what the graph says of it, and labels that cannot be used."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from benchmarks.complexity.calibration import LEAST_SLOPE, expected_error, fit_platt
from benchmarks.complexity.export import fitted_of, graph, vectors_of
from benchmarks.complexity.fit import Fitted, fit_calibrated, worth_starting_from
from benchmarks.complexity.report import apgr
from benchmarks.complexity.rows import BadRows, matrix, read
from benchmarks.complexity.train import main
from gateway.analysis.difficulty import MAX_MODEL_BYTES, PRIOR_PATH, DifficultyModel

EASY, HARD = ["list", "three", "colors", "please"], ["prove", "this", "theorem", "about", "primes"]


def labels(count: int) -> list[dict[str, object]]:
    """The large model is needed for hard words, and only for them."""
    rng = random.Random(1)
    rows: list[dict[str, object]] = []
    for i in range(count):
        words = HARD if i % 2 else EASY
        prompt = " ".join(rng.choices(words, k=rng.randint(3, 9))) + f" {rng.randint(1, 99)}"
        rows.append({"prompt": prompt, "weak": int(i % 2 == 0 or rng.random() < 0.2), "strong": 1})
    return rows


def test_trains_a_graph_that_orders_and_is_calibrated(tmp_path: Path) -> None:
    rows = labels(200)
    source = tmp_path / "labels.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    assert main(["--train", str(source), "--out", str(tmp_path / "out")]) == 0
    path = tmp_path / "out" / "model.onnx"
    assert path.stat().st_size <= MAX_MODEL_BYTES
    model = DifficultyModel(path)
    easy = model.judge("list three colors 7", total_chars=19, turns=1)
    hard = model.judge("prove this theorem 7", total_chars=20, turns=1)
    assert easy.difficulty < hard.difficulty
    assert easy.p_small_ok > 0.8 > 0.5 > hard.p_small_ok
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert metadata["apgr"] > metadata["apgr_length"]
    assert "labels.jsonl" in (tmp_path / "out" / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize("base", [None, fitted_of(PRIOR_PATH)], ids=["from scratch", "from the prior"])
def test_the_graph_says_what_was_fitted(tmp_path: Path, base: Fitted | None) -> None:
    rows = labels(100)
    weak = np.array([float(str(row["weak"])) for row in rows])
    features = matrix([str(row["prompt"]) for row in rows], vectors_of(PRIOR_PATH))
    fitted = fit_calibrated(features, weak, 1.0 - weak, base)
    path = tmp_path / "model.onnx"
    path.write_bytes(graph(fitted, vectors_of(PRIOR_PATH), {}).SerializeToString())
    assert path.stat().st_size <= MAX_MODEL_BYTES
    model = DifficultyModel(path)
    for row, said in zip(rows[:20], fitted.p_small_ok(features)[:20], strict=True):
        prompt = str(row["prompt"])
        assert model.judge(prompt, total_chars=len(prompt), turns=1).p_small_ok == pytest.approx(
            said, abs=1e-3
        )


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "prompt,weak\nx,1\n", "row 1: no column 'strong'"),
        ("a.csv", "prompt,weak,strong\nx,1,2\n", "row 1: weak and strong must lie"),
        ("a.jsonl", '{"prompt": "x", "weak": "?", "strong": 1}\n', "row 1: weak and strong must be numbers"),
        ("a.jsonl", "{}\nnonsense\n", "no column 'prompt'"),
        ("a.jsonl", "", "no row"),
        ("a.jsonl", '{"prompt": ' + "[" * 100_000, "line 1: not a JSON object"),
    ],
)
def test_labels_that_cannot_be_used_name_file_and_row(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(BadRows, match=said):
        read(path)


def test_a_prior_that_misleads_is_not_started_from() -> None:
    prior = fitted_of(PRIOR_PATH)
    features = matrix([str(row["prompt"]) for row in labels(300)], vectors_of(PRIOR_PATH))
    need = prior.need(features)
    noise = np.random.default_rng(1).normal(size=300) * need.std()
    assert worth_starting_from(features, need + noise, prior)
    assert not worth_starting_from(features, noise - 3 * need, prior)


def test_too_few_labels_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "few.csv"
    path.write_text("prompt,weak,strong\nx,1,1\n")
    assert main(["--train", str(path), "--out", str(tmp_path)]) == 2
    assert "at least" in capsys.readouterr().err


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    for name, text in (
        ("a.csv", "prompt,weak,strong\nx,0,1\n"),
        ("a.jsonl", '{"prompt": "x", "weak": 0, "strong": 1}'),
    ):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8-sig")
        assert [row.prompt for row in read(path)] == ["x"]


@pytest.mark.parametrize(
    "rows",
    [
        [("", i % 2, 1) for i in range(60)],
        [("", 1, 1) for _ in range(60)],
        [(f"prompt {i}", i % 2, i % 2) for i in range(60)],
        [(f"prompt {i}", 0.1 * (i % 3), 0.1 * (i % 3) + 0.3) for i in range(60)],
    ],
    ids=["one prompt", "one prompt, one label", "never better", "always as much better"],
)
def test_labels_that_teach_no_order_are_refused(
    rows: list[tuple[str, float, float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "alike.jsonl"
    keys = ("prompt", "weak", "strong")
    path.write_text("\n".join(json.dumps(dict(zip(keys, row, strict=True))) for row in rows))
    assert main(["--train", str(path), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train: 60 labels teach no order")
    assert not (tmp_path / "out").exists()


def test_odds_fall_with_need_and_are_calibrated() -> None:
    rng = np.random.default_rng(1)
    need = rng.normal(size=4000)
    good = (rng.uniform(size=4000) < 1 / (1 + np.exp(-(0.5 - 1.2 * need)))).astype(float)
    platt = fit_platt(need, good)
    assert (platt.level, platt.slope) == (pytest.approx(0.5, abs=0.15), pytest.approx(-1.2, abs=0.15))
    assert expected_error(platt(need), good) < 0.03
    assert expected_error(np.full(4000, 0.95), good) > 0.2
    assert fit_platt(need, 1 - good).slope == LEAST_SLOPE


def test_the_metric_knows_the_best_and_the_worst_order() -> None:
    weak, strong = np.array([0.0] * 20 + [1.0] * 80), np.ones(100)
    best = apgr(np.arange(100.0)[::-1], weak, strong)
    assert best > 0.85
    assert apgr(np.arange(100.0), weak, strong) == pytest.approx(1.0 - best, abs=0.02)
