"""What is certified of a fleet's variants, and what that rests on: the file that `tidegate calibrate` writes.

    {"complexity": "1f0c...", "best": "sha256:...",
     "variants": {"sha256:...": {"threshold": 0.4, "worse_share": 0.02}, "sha256:...": {"threshold": null}}}

A threshold is a difficulty of one complexity model, and "worse" means worse than the best variant of that
time. Where either changes, what was proven says nothing any more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Basis(NamedTuple):
    """What an outcome was measured by: the complexity model's fingerprint, the best variant's digest."""

    complexity: str
    best: str


class Certificate(NamedTuple):
    """Proven for one variant: up to this difficulty at most `worse_share` of all answers are worse."""

    threshold: float
    worse_share: float


@dataclass(frozen=True, slots=True)
class Certified:
    """Certificates by variant digest. `basis` is None in files from before it was kept: nothing is proven."""

    by_variant: Mapping[str, Certificate] = field(default_factory=dict)
    basis: Basis | None = None


NOTHING = Certified()


def parse(text: str) -> Certified:
    """Raises ValueError, with the reason, for what is no list of certificates."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict) or not isinstance(value.get("variants"), dict):
        raise ValueError('no object with "variants"')
    found = {}
    for digest, about in value["variants"].items():
        if not isinstance(about, dict) or "threshold" not in about:
            raise ValueError(f"certificate of {digest}: no threshold")
        if about["threshold"] is not None:
            found[digest] = Certificate(_share(about, "threshold"), _share(about, "worse_share"))
            if not 0.0 < found[digest].worse_share < 1.0:
                raise ValueError("worse_share promises nothing, or perfection")
    return Certified(found, _basis(value))


def _basis(value: dict[str, Any]) -> Basis | None:
    complexity, best = value.get("complexity"), value.get("best")
    if complexity is None and best is None:
        return None
    if not (isinstance(complexity, str) and isinstance(best, str) and complexity and best):
        raise ValueError('"complexity" and "best" are no texts')
    return Basis(complexity, best)


def _share(about: dict[str, Any], name: str) -> float:
    value = about.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is no number from 0 to 1")
    return float(value)
