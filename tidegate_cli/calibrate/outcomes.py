"""Reads the gateway's outcome log: answers in the order of time, joined with their verdicts.

With pairs, a request whose copy was answered too teaches of the variant that is compared with the best one,
and nothing else: counted once more by its own draw it would be two bets on one outcome. Whether a copy ran
does not depend on any answer, so of pairs all are looked at. Without a verdict one counts as worse, as any
silence does.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tidegate.routing.certify import Seen

Key = tuple[str, str]
# By tenant, request, and the variant of a pair ("": the answer that was given).
Verdicts = dict[tuple[str, str, str], bool]
# Of a pair the logged propensity, the chance of its copy, is not used. It would weigh pairs against requests
# that had no copy, and these are not in this sequence: the pair itself is what was sampled, apart from any
# answer, and every pair is looked at. (Whether a drawn copy also ran depends on the load, so its true chance
# is not known.)
_ALL_DRAWN: dict[str, Any] = {"propensity": 1.0, "drawn": True}


@dataclass(slots=True)
class VariantLog:
    """The answers of one variant. `silent` counts the drawn ones without a verdict."""

    digest: str
    model: str
    seen: list[Seen] = field(default_factory=list)
    silent: int = 0

    @property
    def floor(self) -> float:
        return min(each.propensity for each in self.seen)


@dataclass(slots=True)
class Log:
    """What the files hold. `unusable` counts lines that are none of ours, `pairs` those that count."""

    variants: dict[str, VariantLog]
    answers: int = 0
    verdicts: int = 0
    too_young: int = 0
    unusable: int = 0
    pairs: int = 0


def with_rotated(path: Path) -> list[Path]:
    """The rotated files of a log, oldest first, then the log itself."""
    rotated = sorted(
        (p for p in path.parent.glob(f"{path.name}.*") if p.suffix[1:].isdigit()),
        key=lambda p: -int(p.suffix[1:]),
    )
    return [*rotated, path]


def read(paths: Iterable[Path], until_s: float, *, pairs: bool = False) -> Log:
    """`until_s`: answers after it are left out, whatever is known of them: their verdicts may still come.
    `pairs`: count copies too.

    Raises OSError for a file that cannot be read.
    """
    files = [file for path in paths for file in with_rotated(path)]
    log = Log(variants={})
    verdicts, labels = _verdicts(files, log)
    paired = _paired(files) if pairs else frozenset()
    for row in _rows(files):
        if row is None or row.get("kind") not in (("answer", "pair") if pairs else ("answer",)):
            continue
        is_pair = row["kind"] == "pair"
        if is_pair != (_key(row) in paired):
            continue
        seen = _seen(row | _ALL_DRAWN if is_pair else row, verdicts, labels)
        if seen is None:
            log.unusable += 1
        elif row["at_s"] > until_s:
            log.too_young += 1
        else:
            log.answers += 1
            log.pairs += is_pair
            digest = str(row["variant"])
            variant = log.variants.setdefault(digest, VariantLog(digest, str(row.get("model", ""))))
            variant.seen.append(seen[0])
            variant.silent += seen[1]
    return log


def _verdicts(files: Iterable[Path], log: Log) -> tuple[Verdicts, Counter[Key]]:
    """The last verdict per request, and how many answers bear each HTTP request label."""
    verdicts: Verdicts = {}
    labels: Counter[Key] = Counter()
    for row in _rows(files):
        kind = None if row is None else row.get("kind")
        key = None if row is None else _key(row)
        if row is None or key is None or kind not in ("answer", "pair", "verdict"):
            log.unusable += 1
        elif kind == "pair":
            continue
        elif kind == "verdict":
            if isinstance(row.get("worse"), bool):
                verdicts[*key, str(row.get("variant", ""))] = row["worse"]
                log.verdicts += 1
            else:
                log.unusable += 1
        else:
            labels[_label(key)] += 1
    return verdicts, labels


def _paired(files: Iterable[Path]) -> frozenset[Key]:
    """Requests of which a variant was compared with the best one."""
    return frozenset(
        _key(row)
        for row in _rows(files)
        if row is not None and row.get("kind") == "pair" and row.get("against_best") is True
    )


def _seen(row: dict[str, Any], verdicts: Verdicts, labels: Counter[Key]) -> tuple[Seen, bool] | None:
    """One answer, and whether its verdict is missing; None for a row that cannot be used."""
    try:
        difficulty, propensity, drawn = float(row["difficulty"]), float(row["propensity"]), row["drawn"]
        float(row["at_s"])
        row["variant"]
    except (KeyError, TypeError, ValueError):
        return None
    if not (0.0 <= difficulty <= 1.0 and 0.0 < propensity <= 1.0 and isinstance(drawn, bool)):
        return None
    if not drawn:
        return Seen(difficulty, propensity), False
    key = _key(row)
    variant = str(row["variant"]) if row.get("kind") == "pair" else ""
    worse = verdicts.get((*key, variant))
    if worse is None and labels[_label(key)] == 1:
        # Over HTTP a caller knows its request's label, not the number behind it.
        worse = verdicts.get((*_label(key), variant))
    return Seen(difficulty, propensity, 1.0 if worse is None else float(worse)), worse is None


def _key(row: dict[str, Any]) -> Key:
    return str(row.get("tenant")), str(row.get("request"))


def _label(key: Key) -> Key:
    return key[0], key[1].rpartition(":")[0]


def _rows(files: Iterable[Path]) -> Iterator[dict[str, Any] | None]:
    """Each line's object, None for one that is none."""
    for file in files:
        with file.open("rb") as lines:
            for line in lines:
                try:
                    value = json.loads(line)
                except ValueError:
                    value = None
                yield value if isinstance(value, dict) else None
