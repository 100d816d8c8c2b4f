"""The inner arithmetic of a regression, written out for the three sizes there are.

Two or three of these run per answer and regression. As loops over short lists they took most of the time of
learning; written out they take a third of it. All sizes compute what the loops (`add_any` and so on) say,
operation by operation, so that results do not depend on which one ran.

`s` is the matrix of the evidence and `b` its right side, `theta` is moved in place towards the solution of

    (s + P) theta = b + P prior        P diagonal, precision / max(prior, theta, LEAST_PRIOR)^2

one theta after the other; a theta stays within 0 and MAX_THETA.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

MAX_THETA = 100.0
LEAST_PRIOR = 0.3

Matrix = list[list[float]]
Sweep = Callable[[Matrix, Sequence[float], list[float], Sequence[float], float], None]
Add = Callable[[Matrix, list[float], Sequence[float], float, float, float], None]
Scale = Callable[[Matrix, list[float], float], None]


def add_any(
    s: Matrix, b: list[float], parts: Sequence[float], actual: float, weight: float, keep: float
) -> None:
    """Evidence fades by `keep`, and an observation of this weight comes to it."""
    for i, row in enumerate(s):
        scaled = weight * parts[i]
        b[i] = keep * b[i] + scaled * actual
        s[i] = [keep * value + scaled * other for value, other in zip(row, parts, strict=True)]


def sweep_any(
    s: Matrix, b: Sequence[float], theta: list[float], prior: Sequence[float], precision: float
) -> None:
    for i, row in enumerate(s):
        total = 0.0
        for value, factor in zip(row, theta, strict=True):
            total += value * factor
        theta[i] = _one(precision, prior[i], theta[i], b[i], row[i], total)


def _one(precision: float, prior: float, theta: float, b: float, own: float, total: float) -> float:
    # As sure of a large theta as of a small one, in relation to it.
    scale = prior if prior > theta else theta
    if scale < LEAST_PRIOR:
        scale = LEAST_PRIOR
    sure = precision / (scale * scale)
    value = sure * prior + b
    if own:
        value -= total - own * theta
    value /= sure + own
    return 0.0 if value < 0.0 else value if value < MAX_THETA else MAX_THETA


def scale_any(s: Matrix, b: list[float], by: float) -> None:
    """All evidence weighs so many times as much."""
    b[:] = [by * value for value in b]
    s[:] = [[by * value for value in row] for row in s]


def add_1(
    s: Matrix, b: list[float], parts: Sequence[float], actual: float, weight: float, keep: float
) -> None:
    (p,) = parts
    scaled = weight * p
    b[0] = keep * b[0] + scaled * actual
    row = s[0]
    row[0] = keep * row[0] + scaled * p


def scale_1(s: Matrix, b: list[float], by: float) -> None:
    b[0] *= by
    s[0][0] *= by


def sweep_1(
    s: Matrix, b: Sequence[float], theta: list[float], prior: Sequence[float], precision: float
) -> None:
    own, t = s[0][0], theta[0]
    theta[0] = _one(precision, prior[0], t, b[0], own, own * t)


def add_2(
    s: Matrix, b: list[float], parts: Sequence[float], actual: float, weight: float, keep: float
) -> None:
    p, q = parts
    wp, wq = weight * p, weight * q
    b[0] = keep * b[0] + wp * actual
    b[1] = keep * b[1] + wq * actual
    (pp, pq), (qp, qq) = s
    s[0] = [keep * pp + wp * p, keep * pq + wp * q]
    s[1] = [keep * qp + wq * p, keep * qq + wq * q]


def scale_2(s: Matrix, b: list[float], by: float) -> None:
    b[0] *= by
    b[1] *= by
    (pp, pq), (qp, qq) = s
    s[0], s[1] = [by * pp, by * pq], [by * qp, by * qq]


def sweep_2(
    s: Matrix, b: Sequence[float], theta: list[float], prior: Sequence[float], precision: float
) -> None:
    (pp, pq), (qp, qq) = s
    t, u = theta
    theta[0] = t = _one(precision, prior[0], t, b[0], pp, pp * t + pq * u)
    theta[1] = _one(precision, prior[1], u, b[1], qq, qp * t + qq * u)


def add_4(
    s: Matrix, b: list[float], parts: Sequence[float], actual: float, weight: float, keep: float
) -> None:
    p, q, r, o = parts
    for i, row in enumerate(s):
        w = weight * parts[i]
        b[i] = keep * b[i] + w * actual
        x, y, z, v = row
        s[i] = [keep * x + w * p, keep * y + w * q, keep * z + w * r, keep * v + w * o]


def scale_4(s: Matrix, b: list[float], by: float) -> None:
    t, u, v, w = b
    b[:] = (by * t, by * u, by * v, by * w)
    for i, (x, y, z, q) in enumerate(s):
        s[i] = [by * x, by * y, by * z, by * q]


def sweep_4(
    s: Matrix, b: Sequence[float], theta: list[float], prior: Sequence[float], precision: float
) -> None:
    (a, b0, c, d), (e, f, g, h), (i, j, k, m), (n, o, p, q) = s
    t, u, v, w = theta
    theta[0] = t = _one(precision, prior[0], t, b[0], a, a * t + b0 * u + c * v + d * w)
    theta[1] = u = _one(precision, prior[1], u, b[1], f, e * t + f * u + g * v + h * w)
    theta[2] = v = _one(precision, prior[2], v, b[2], k, i * t + j * u + k * v + m * w)
    theta[3] = _one(precision, prior[3], w, b[3], q, n * t + o * u + p * v + q * w)


SWEEPS: dict[int, Sweep] = {1: sweep_1, 2: sweep_2, 4: sweep_4}
ADDS: dict[int, Add] = {1: add_1, 2: add_2, 4: add_4}
SCALES: dict[int, Scale] = {1: scale_1, 2: scale_2, 4: scale_4}
