"""Prompt complexity: how well it orders, how well it is calibrated, what it costs.

    DATA=DIR make bench-complexity

DIR holds score.py and routing/ (RouteLLM's and LLMRouter's public outcome tables). Every order is judged by
score.py's own metric and splits, as the mean paired gain in APGR over prompt length alone. Features and
penalties were chosen on one half of the prompts; figures of the other half are printed beside."""

from __future__ import annotations

import gc
import math
import os
import random
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.common import CannotMeasure, Row, percentile, row, run
from benchmarks.complexity import deployments
from benchmarks.complexity.calibration import expected_error
from benchmarks.complexity.export import graph, vectors_of
from benchmarks.complexity.fit import fit_calibrated
from benchmarks.complexity.splits import GSM, IN_DOMAIN, TASK_OUT, UNSEEN, Rig
from gateway.analysis.difficulty import MAX_MODEL_BYTES, PRIOR_PATH, DifficultyModel
from tidegate.routing.certify import Promise

BARS = {IN_DOMAIN: 0.06, UNSEEN: 0.01, GSM: 0.04, TASK_OUT: 0.03}
SEEDS = 20
CALIBRATION_SEEDS = 5
HALF_SEEDS = 5
LENGTHS = (200, 2_000, 20_000)
CALLS = 2_000
RUNS = 200
LABEL_RUNS = 20
DRAWN = 0.02


async def measure() -> list[Row]:
    folder = Path(os.environ.get("DATA", ""))
    if not os.environ.get("DATA"):
        raise CannotMeasure("set DATA to the folder with score.py and routing/")
    rig = Rig(folder, vectors_of(PRIOR_PATH))
    return [*cost_rows(rig), *calibration_rows(rig), *order_rows(rig), *certification_rows()]


def order_rows(rig: Rig) -> list[Row]:
    found = rig.gains(int(os.environ.get("SEEDS", SEEDS)))
    rows = []
    for name, bar in BARS.items():
        gains = found[name]
        rows += [
            row(f"{name}: APGR over length", gains.mean(), "", bar=bar, sense=">="),
            row(f"{name}: half of its 95 % interval", gains.half_width(), ""),
            row(f"{name}: on the half not developed on", float(np.mean(gains.untouched_rows)), ""),
        ]
    # A new model starts from the shipped prior, which has seen all of this. So the prior is made of one half
    # of the prompts here, and everything else happens on the other.
    for half in (0, 1):
        started = rig.gains(HALF_SEEDS, half, rig.prior(1 - half))
        rows += [
            row(f"half {half}, started from a prior of the other: {name}", started[name].mean(), "")
            for name in BARS
        ]
    return rows


def calibration_rows(rig: Rig) -> list[Row]:
    """In domain: calibrated on the 1,500 labels alone, judged on the rest."""
    errors, apart = [], 0.0
    for seed in range(CALIBRATION_SEEDS):
        ((train, test),) = rig.score.splits(seed)[IN_DOMAIN]
        weak = np.array([r[1] for r in train])
        fitted = fit_calibrated(rig.matrix(train), weak, np.array([r[2] - r[1] for r in train]))
        said = fitted.p_small_ok(rig.matrix(test))
        errors.append(expected_error(said, np.array([r[1] for r in test])))
        if seed == 0:
            path = Path(os.environ.get("TMPDIR", "/tmp")) / f"tidegate-bench-complexity-{os.getpid()}.onnx"
            try:
                model = graph(fitted, vectors_of(PRIOR_PATH), {}).SerializeToString(deterministic=True)
                path.write_bytes(model)
                loaded = DifficultyModel(path)
            finally:
                path.unlink(missing_ok=True)
            for said_here, tested in zip(said[:300], test[:300], strict=True):
                judged = loaded.judge(tested[0], total_chars=len(tested[0]), turns=1)
                apart = max(apart, abs(judged.p_small_ok - said_here))
    return [
        row("calibration error in domain (ECE, 10 bins)", float(np.mean(errors)), "", bar=0.05),
        row("calibration error, worst seed", max(errors), ""),
        row("graph against the fit, largest difference", apart, "", bar=1e-3),
        row("size of the shipped prior", PRIOR_PATH.stat().st_size, "bytes", bar=MAX_MODEL_BYTES),
    ]


def cost_rows(rig: Rig) -> list[Row]:
    """Wall clock of the whole judgement in this process, on prompts cut from the data."""
    model = DifficultyModel()
    # As the gateway and `tidegate complexity` do at their start: what is there already is not walked again.
    gc.collect()
    gc.freeze()
    text = "\n\n".join(r[0] for r in rig.score.pairs("mmlu"))
    rows = []
    for length in LENGTHS:
        step = (len(text) - length) // CALLS
        costs = []
        for call in range(CALLS):
            prompt = text[call * step : call * step + length]
            began_s = time.perf_counter()
            model.judge(prompt, total_chars=len(prompt), turns=1)
            costs.append((time.perf_counter() - began_s) * 1000)
        rows += [
            row(f"{length:,} characters, p50", percentile(costs, 0.5), "ms"),
            row(f"{length:,} characters, p99", percentile(costs, 0.99), "ms", bar=1.0),
        ]
    return rows


def certification_rows() -> list[Row]:
    """Made-up deployments with a known truth: at most 2 % worse, 95 % sure, 2 % of answers drawn."""
    promise = Promise()
    runs = [deployments.run(seed, promise, requests=20_000, share=DRAWN) for seed in range(RUNS)]
    certified = [r for r in runs if r.certified is not None]
    rows = [
        row("wrong certificates at any of five looks", share_of([r.violated for r in runs]), "", bar=0.05),
        row("certified to some difficulty", len(certified) / len(runs), "of runs"),
    ]
    for name, worse in (("none is worse", 0.0), ("0.5 % are worse", 0.005)):
        made = [
            deployments.run(
                seed, promise, requests=80_000, share=DRAWN, worse_at=lambda _, worse=worse: worse
            )
            for seed in range(LABEL_RUNS)
        ]
        needed = sorted(math.inf if r.labels_to_all is None else r.labels_to_all for r in made)
        rows.append(row(f"labels to certify all where {name}, p50", needed[len(needed) // 2], "labels"))
    # Positive control: the same test without its correction for chance would err far more often.
    rows.append(row("wrong certificates if the estimate were trusted", share_of(naive_errors(promise)), ""))
    return rows


def naive_errors(promise: Promise) -> list[bool]:
    """Certifying whatever is estimated below the promise, on the same deployments."""
    errors = []
    for seed in range(RUNS):
        rng = random.Random(seed)
        worse_at = deployments.drawn_deployment(rng, promise)
        labels = [rng.random() < worse_at(rng.random()) for _ in range(400)]
        errors.append(sum(labels) / len(labels) < promise.worse_share < deployments.true_share(worse_at, 1.0))
    return errors


def share_of(happened: list[bool]) -> float:
    return sum(happened) / len(happened)


if __name__ == "__main__":
    sys.exit(run("complexity", measure))
