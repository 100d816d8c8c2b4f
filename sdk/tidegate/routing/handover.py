"""What was learned as text, so that a replica that starts knows what its peers know.

One record is of a node and variant, of a hardware class and variant (then `node` is empty), or of the models'
lengths. It holds the regressions' evidence in the units of the report it was learned against, and a thinned
picture of the misses: bounded, without prompts, names or addresses. A record of another version, or one that
says anything that cannot be, is refused as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tidegate.routing.curves import Curves
from tidegate.routing.domain import Speeds
from tidegate.routing.knowledge import Knowledge
from tidegate.routing.lengths import CLASS_LIMITS, Lengths
from tidegate.routing.odds import quantile
from tidegate.routing.regression import Regression
from tidegate.routing.residuals import LEAST_RATIO, REGIMES, Stretch
from tidegate.routing.sweeps import MAX_THETA

VERSION = 1
MAX_BYTES = 16_384
# How many of the misses are told, evenly from the smallest to the largest; enough for a p95.
TOLD_RATIOS, TOLD_SAMPLES = 21, 24
_MAX_NUMBER = 1e15
_MAX_NAMES, _MAX_POINTS, _MAX_MODELS = 256, 64, 256
_MAX_LOG_STRETCH = 1.2
_REGRESSIONS = (("queue", 2), ("prefill", 4), ("step", 2), ("network", 1))


@dataclass(frozen=True, slots=True)
class Told:
    """A record that was read: whom it is about, and what it says."""

    node_id: str
    boot_id: str
    hardware_class: str
    variant_digest: str
    data: dict[str, Any]


def tell(known: Knowledge, *, node_id: str, hardware_class: str, variant_digest: str) -> str:
    """A node's or a class's record."""
    speeds = None if known.curves is None else known.curves.speeds
    data: dict[str, Any] = {
        "v": VERSION,
        "node": node_id,
        "boot": known.boot_id,
        "class": hardware_class,
        "variant": variant_digest,
        "speeds": None if speeds is None else [speeds.prefill_tokens_per_s, speeds.decode],
        "seen": known.seen,
        "spare": _short(known.spare_tokens),
        "ttft": [_thinned(sorted(r.ratios), TOLD_RATIOS) for r in known.residuals.ttft],
        "joint": [[_short(x) for x in s] for s in list(known.residuals.joint.samples)[-TOLD_SAMPLES:]],
        "stretch": [_short(s.log) for s in _stretches(known)],
    }
    for name, _ in _REGRESSIONS:
        data[name] = _told(getattr(known, name))
    return json.dumps(data, separators=(",", ":"))


def read(text: str) -> Told:
    """Raises ValueError for anything that is not a sound record of this version."""
    data = _object(text)
    for key in ("node", "boot", "class", "variant"):
        if not isinstance(data.get(key), str) or len(data[key]) > _MAX_NAMES:
            raise ValueError(f"{key} is not a name")
    try:
        fill(Knowledge(), data)  # what cannot be taken over is found here and not on a request's path
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a record of what was learned: {type(error).__name__}") from error
    return Told(data["node"], data["boot"], data["class"], data["variant"], data)


def fill(known: Knowledge, data: dict[str, Any]) -> None:
    """Puts a record into knowledge that is empty so far; whoever pools with it keeps doing so."""
    if data["speeds"] is not None:
        prefill, decode = data["speeds"]
        points = tuple((int(_number(b)), _number(t)) for b, t in decode[:_MAX_POINTS])
        known.curves = Curves(Speeds(_number(prefill), points))
    known.seen = int(_number(data["seen"]))
    known.spare_tokens = _number(data["spare"])
    for name, size in _REGRESSIONS:
        _load(getattr(known, name), data[name], size)
    ttft, joint, stretch = data["ttft"], data["joint"], data["stretch"]
    if len(ttft) != REGIMES or len(stretch) != len(_stretches(known)):
        raise ValueError("another number of regimes")
    for residuals, ratios in zip(known.residuals.ttft, ttft, strict=True):
        residuals.ratios.extend(_positive(r) for r in ratios[:TOLD_RATIOS])
    for sample in joint[:TOLD_SAMPLES]:
        a, b, c = (_positive(x) for x in sample)
        known.residuals.joint.samples.append((a, b, c))
    for kept, log in zip(_stretches(known), stretch, strict=True):
        kept.log = min(max(_number(log, least=-_MAX_LOG_STRETCH), -_MAX_LOG_STRETCH), _MAX_LOG_STRETCH)
    known.refresh()


def tell_lengths(lengths: Lengths) -> str:
    models = sorted({model for model, _ in lengths.ended})[:_MAX_MODELS]
    ended = [
        [model, number, _short(ended), _short(tokens)]
        for (model, number), (ended, tokens) in lengths.ended.items()
        if model in models
    ]
    ratios = [[model, _short(ratio)] for model, ratio in lengths.ratios.items() if model in models]
    return json.dumps({"v": VERSION, "ended": ended, "ratios": ratios}, separators=(",", ":"))


def read_lengths(text: str, into: Lengths) -> None:
    """Fills in models that `into` knows nothing of. Raises ValueError."""
    data = _object(text)
    try:
        ended = {
            (_name(model), int(_number(number))): (_number(ended), _number(tokens))
            for model, number, ended, tokens in data["ended"][: _MAX_MODELS * (len(CLASS_LIMITS) + 1)]
        }
        ratios = {_name(model): _positive(ratio) for model, ratio in data["ratios"][:_MAX_MODELS]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a record of lengths: {type(error).__name__}") from error
    into.ended = ended | into.ended
    into.ratios = ratios | into.ratios
    into.changed()


def _told(regression: Regression) -> dict[str, Any]:
    size = len(regression.b)
    return {
        "s": [_short(regression.s[i][j]) for i in range(size) for j in range(i, size)],
        "b": [_short(value) for value in regression.b],
        "theta": [_short(value) for value in regression.theta],
        "n": _short(regression.weight),
        "spread": _short(regression.spread),
    }


def _load(regression: Regression, data: dict[str, Any], size: int) -> None:
    upper, b, theta = data["s"], data["b"], data["theta"]
    if len(upper) != size * (size + 1) // 2 or len(b) != size or len(theta) != size:
        raise ValueError("a regression of another size")
    values = iter([_number(value) for value in upper])
    for i in range(size):
        for j in range(i, size):
            regression.s[i][j] = regression.s[j][i] = next(values)
    regression.b[:] = [_number(value) for value in b]
    regression.theta[:] = [min(_number(value), MAX_THETA) for value in theta]
    regression.weight = _number(data["n"])
    regression.spread = min(max(_number(data["spread"]), 0.01), 1.0)


def _stretches(known: Knowledge) -> Sequence[Stretch]:
    joint = known.residuals.joint
    return (*(r.stretch for r in known.residuals.ttft), joint.tpot, joint.total)


def _thinned(ordered: Sequence[float], count: int) -> list[float]:
    """Fewer values with the same quantiles."""
    if len(ordered) > count:
        ordered = [quantile(ordered, i / (count + 1)) for i in range(1, count + 1)]
    return [_short(value) for value in ordered]


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _object(text: str) -> dict[str, Any]:
    if len(text) > MAX_BYTES:
        raise ValueError("too long")
    try:
        data = json.loads(text)
    except RecursionError as error:
        raise ValueError("too deep") from error
    if not isinstance(data, dict) or data.get("v") != VERSION:
        raise ValueError("another version's record")
    return data


def _number(value: object, least: float = 0.0) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError("not a number")
    if not least <= value <= _MAX_NUMBER:  # nor is NaN; isfinite() would fail on an int beyond all floats
        raise ValueError("out of range")
    return float(value)


def _positive(value: object) -> float:
    return max(_number(value), LEAST_RATIO)


def _name(value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAX_NAMES:
        raise ValueError("not a name")
    return value
