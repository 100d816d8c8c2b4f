"""Fits how much a prompt needs the larger model: ridge regressions in closed form, numpy only.

    need(prompt) = dense . a + cos(P dense + phase) . b + vector . c + sum(table[ids]) / sqrt(n) + bias

`a`, `b` and `c` are fitted together on (strong - weak); the table of n-grams on what they leave over. A fit
may start from another model: it then explains what is left over by BASE_SHARE of that one's need, under
penalties that are BASE_TRUST times as high, so that few labels, or labels of other tasks, do not undo it.
The cosines are random Fourier features (Rahimi and Recht 2007): they approximate a Gaussian kernel over the
numbers, which says little far from any label. Few of them are drawn at a time, a model is fitted with each
draw, and the mean of these models is taken, as with bagging: what one draw makes of chance the others do not.
All constants were chosen once (docs/complexity.md says on what)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from benchmarks.complexity.calibration import Platt, fit_platt
from benchmarks.complexity.rows import Floats, Ids, Matrix
from gateway.analysis.features import BUCKETS

DRAWS = 8
COSINES = 128
# Frequencies of the cosines, in units of one over the root of how many numbers there are.
FREQUENCY = 1.5
CLIP = 3.0
DENSE_PENALTY = 8000.0
COSINE_PENALTY = 2000.0
VECTOR_PENALTY = 1000.0 / 64.0
NGRAM_PENALTY = 60.0
CG_STEPS = 25
FOLDS = 5
BASE_SHARE = 0.75
BASE_TRUST = 4.0


@dataclass(frozen=True, slots=True)
class Fitted:
    """Weights of the formula above; `centre` and `spread` are of the need over the labelled prompts."""

    mean: Floats
    deviation: Floats
    projection: Floats
    phase: Floats
    dense: Floats
    cosine: Floats
    vector: Floats
    table: Floats
    bias: float
    base: Fitted | None = None
    centre: float = 0.0
    spread: float = 1.0
    platt: Platt = Platt(0.0, 0.0)

    def need(self, rows: Matrix) -> Floats:
        """Larger: the larger model is needed more."""
        own = self._block(rows) + rows.ngrams_times(self.table)
        return own if self.base is None else own + BASE_SHARE * self.base.need(rows)

    def _block(self, rows: Matrix) -> Floats:
        z = np.clip((rows.dense - self.mean) / self.deviation, -CLIP, CLIP)
        cosines = np.cos(z @ self.projection + self.phase)
        found: Floats = z @ self.dense + cosines @ self.cosine + rows.vectors @ self.vector + self.bias
        return found

    def p_small_ok(self, rows: Matrix) -> Floats:
        return self.platt((self.need(rows) - self.centre) / self.spread)


def fit_need(rows: Matrix, target: Floats, base: Fitted | None = None, seed: int = 0) -> Fitted:
    """`target`: how much better the larger model's answer was, per row. `base`: the model to start from."""
    if base is not None:
        target = target - BASE_SHARE * base.need(rows)
    trust = 1.0 if base is None else BASE_TRUST
    drawn = [_fit_draw(rows, target, trust, np.random.default_rng((seed, draw))) for draw in range(DRAWS)]
    return replace(
        drawn[0],
        projection=np.hstack([d.projection for d in drawn]),
        phase=np.concatenate([d.phase for d in drawn]),
        dense=_mean([d.dense for d in drawn]),
        cosine=np.concatenate([d.cosine for d in drawn]) / DRAWS,
        vector=_mean([d.vector for d in drawn]),
        table=_mean([d.table for d in drawn]),
        bias=float(np.mean([d.bias for d in drawn])),
        base=base,
    )


def _mean(parts: list[Floats]) -> Floats:
    found: Floats = np.mean(parts, axis=0)
    return found


def _fit_draw(rows: Matrix, target: Floats, trust: float, rng: np.random.Generator) -> Fitted:
    """One of the models whose mean is taken."""
    width = rows.dense.shape[1]
    mean, deviation = rows.dense.mean(axis=0), rows.dense.std(axis=0) + 1e-6
    z = np.clip((rows.dense - mean) / deviation, -CLIP, CLIP)
    projection = FREQUENCY * rng.normal(size=(width, COSINES)) / np.sqrt(width)
    phase = rng.uniform(0.0, 2.0 * np.pi, COSINES)
    x = np.hstack([z, np.sqrt(2.0) * np.cos(z @ projection + phase), rows.vectors])
    penalties = trust * np.repeat(
        [DENSE_PENALTY, COSINE_PENALTY, VECTOR_PENALTY], [width, COSINES, rows.vectors.shape[1]]
    )
    middle, level = x.mean(axis=0), float(target.mean())
    x -= middle
    weights = np.linalg.solve(x.T @ x + np.diag(penalties), x.T @ (target - level))
    left_over = target - level - x @ weights
    return Fitted(
        mean=mean,
        deviation=deviation,
        projection=projection,
        phase=phase,
        dense=weights[:width],
        cosine=weights[width : width + COSINES] * np.sqrt(2.0),
        vector=weights[width + COSINES :],
        table=_ngram_table(rows, left_over, trust * NGRAM_PENALTY),
        bias=level - float(middle @ weights),
    )


def _ngram_table(rows: Matrix, left_over: Floats, penalty: float) -> Floats:
    """Ridge on the n-grams by conjugate gradients in the dual: (N N' + penalty) alpha = left_over."""
    alpha = np.zeros_like(left_over)
    residual = left_over.copy()
    direction, power = residual.copy(), float(residual @ residual)
    for _ in range(CG_STEPS):
        if power < 1e-8:
            break
        image = rows.ngrams_times(rows.times_ngrams(direction, BUCKETS)) + penalty * direction
        step = power / float(direction @ image)
        alpha += step * direction
        residual -= step * image
        power, before = float(residual @ residual), power
        direction = residual + power / before * direction
    return rows.times_ngrams(alpha, BUCKETS)


def folds(count: int, seed: int = 0) -> list[Ids]:
    """Row numbers of each of FOLDS random parts."""
    return [np.sort(part) for part in np.array_split(np.random.default_rng(seed).permutation(count), FOLDS)]


def out_of_fold(rows: Matrix, target: Floats, parts: list[Ids], base: Fitted | None = None) -> Floats:
    """The need of every row by a model that was fitted without its part."""
    found = np.zeros(len(rows))
    for part in parts:
        rest = np.setdiff1d(np.arange(len(rows)), part)
        found[part] = fit_need(rows.take(rest), target[rest], base).need(rows.take(part))
    return found


def fit_calibrated(rows: Matrix, weak: Floats, target: Floats, base: Fitted | None = None) -> Fitted:
    """Fits the need, and the odds that the small model answers well on needs of unseen rows."""
    unseen = out_of_fold(rows, target, folds(len(rows)), base)
    fitted = fit_need(rows, target, base)
    centre, spread = float(unseen.mean()), float(unseen.std()) + 1e-9
    platt = fit_platt((unseen - centre) / spread, weak)
    return replace(fitted, centre=centre, spread=spread, platt=platt)


# A model to start from that makes the error on unseen rows this much larger is for other prompts or models.
MISLEADING = 1.005


def worth_starting_from(rows: Matrix, target: Floats, base: Fitted) -> bool:
    """Whether starting from `base` does not spoil what these labels teach by themselves."""
    parts = folds(len(rows), seed=3)
    alone, based = (out_of_fold(rows, target, parts, start) for start in (None, base))
    return float(np.var(target - based)) <= MISLEADING * float(np.var(target - alone))
