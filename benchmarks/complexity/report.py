"""What a model reaches on prompts that it did not see: RouteLLM's metric, against length, and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.complexity.calibration import Bin, curve, expected_error, fit_platt
from benchmarks.complexity.fit import Fitted, folds, out_of_fold
from benchmarks.complexity.rows import Floats, Ids, Labelled, Matrix

QUANTILES = 10
# Below this, the larger model is hardly better and the metric means nothing.
LEAST_GAIN = 0.05


def apgr(need: Floats, weak: Floats, strong: Floats) -> float:
    """Area under quality over the share of strong calls, of all there is to gain; 0.5 is chance."""
    points = []
    for i, threshold in enumerate(np.quantile(need, np.linspace(0.0, 1.0, QUANTILES + 1))):
        take = need >= threshold if i < QUANTILES else need > threshold
        points.append((take.mean(), np.where(take, strong, weak).mean()))
    x, y = np.array(sorted(points)).T
    area = float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum())
    return (area - float(weak.mean())) / float(strong.mean() - weak.mean())


@dataclass(frozen=True, slots=True)
class Report:
    """Figures of unseen rows. APGR is None where the larger model is less than 5 points better."""

    rows: int
    groups: int
    weak_mean: float
    strong_mean: float
    apgr: float | None
    apgr_length: float | None
    apgr_groups: float | None
    calibration_error: float
    started_from_prior: bool
    curve: list[Bin]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        lines = [f"{self.rows} labels, small model {self.weak_mean:.3f}, large model {self.strong_mean:.3f}"]
        if self.apgr is None or self.apgr_length is None:
            lines.append("the large model is less than 5 points better: an order cannot be judged")
        else:
            lines.append(f"APGR of unseen rows {self.apgr:.3f}, length alone {self.apgr_length:.3f}")
        if self.apgr_groups is not None:
            lines.append(f"APGR of unseen groups {self.apgr_groups:.3f} ({self.groups} groups)")
        if self.started_from_prior:
            lines.append(
                "started from the shipped prior: too good where it has seen these prompts (PRIOR.md)"
            )
        lines.append(f"calibration error {self.calibration_error:.3f}")
        return "\n".join(lines)


def report(found: Matrix, rows: Sequence[Labelled], gain: Floats, base: Fitted | None = None) -> Report:
    """Cross-validated over random parts, and over groups where there are at least five."""
    weak, strong = np.array([r.weak for r in rows]), np.array([r.strong for r in rows])
    unseen = out_of_fold(found, gain, folds(len(rows), seed=1), base)
    said = np.zeros(len(rows))
    standing = (unseen - unseen.mean()) / (unseen.std() + 1e-9)
    for part in folds(len(rows), seed=2):
        rest = np.setdiff1d(np.arange(len(rows)), part)
        said[part] = fit_platt(standing[rest], weak[rest])(standing[part])
    judged = float(strong.mean() - weak.mean()) >= LEAST_GAIN
    groups = sorted({r.group for r in rows})
    by_group = judged and len(groups) >= 5
    return Report(
        rows=len(rows),
        groups=len(groups),
        weak_mean=float(weak.mean()),
        strong_mean=float(strong.mean()),
        apgr=apgr(unseen, weak, strong) if judged else None,
        apgr_length=apgr(np.array([float(len(r.prompt)) for r in rows]), weak, strong) if judged else None,
        apgr_groups=(
            apgr(out_of_fold(found, gain, _group_parts(rows, groups), base), weak, strong)
            if by_group
            else None
        ),
        calibration_error=expected_error(said, weak),
        started_from_prior=base is not None,
        curve=curve(said, weak),
    )


def _group_parts(rows: Sequence[Labelled], groups: Sequence[str]) -> list[Ids]:
    """Five parts of whole groups."""
    order = np.random.default_rng(1).permutation(len(groups))
    part_of = {groups[g]: i % 5 for i, g in enumerate(order)}
    parts = np.array([part_of[r.group] for r in rows])
    return [np.flatnonzero(parts == i) for i in range(5)]
