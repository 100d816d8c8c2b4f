"""Reads the gateway's outcome log: answers in the order of time, joined with their verdicts.

With pairs, a request whose copy was answered too teaches of the variant that is compared with the best one,
and nothing else: counted once more by its own draw it would be two bets on one outcome. Whether a copy ran
does not depend on any answer, so of pairs all are looked at. Without a verdict one counts as worse, as any
silence does.

Only answers of one basis count together, that of most of the newest ones: of another complexity model
difficulties mean something else, beside another best variant verdicts do.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from glob import escape
from heapq import nlargest
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from tidegate.routing.certificates import Basis
from tidegate.routing.certify import Seen

# Whose basis most of this many newest settled answers have, counts.
NEWEST = 200

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
class Part:
    """The answers of one basis. `pairs` counts those that are of pairs."""

    variants: dict[str, VariantLog] = field(default_factory=dict)
    answers: int = 0
    pairs: int = 0


@dataclass(slots=True)
class Log:
    """What the files hold. `unusable` counts lines that are none of ours; of answers that could be used,
    `too_young` counts those that may still get a verdict, `no_basis` those whose line does not say what they
    were measured by, `other_basis` those of another basis than `basis`, whose answers `part` holds."""

    basis: Basis | None = None
    part: Part = field(default_factory=Part)
    verdicts: int = 0
    too_young: int = 0
    no_basis: int = 0
    other_basis: int = 0
    unusable: int = 0


class _Answer(NamedTuple):
    seen: Seen
    at_s: float
    variant: str
    is_silent: bool
    basis: Basis | None


def with_rotated(path: Path) -> list[Path]:
    """The rotated files of a log, oldest first, then the log itself."""
    rotated = sorted(
        (p for p in path.parent.glob(f"{escape(path.name)}.*") if p.suffix[1:].isdecimal()),
        key=lambda p: -int(p.suffix[1:]),
    )
    return [*rotated, path]


def read(paths: Iterable[Path], until_s: float, *, pairs: bool = False) -> Log:
    """`until_s`: answers after it are left out, whatever is known of them: their verdicts may still come.
    `pairs`: count copies too.

    Raises OSError for a file that cannot be read.
    """
    # Each file once, whatever a shell made of "outcomes.jsonl*": what counts twice is a bet too many.
    files = list(dict.fromkeys(file.absolute() for path in paths for file in with_rotated(path)))
    log = Log()
    parts: dict[Basis, Part] = {}
    recent: list[tuple[float, Basis]] = []
    verdicts, labels = _verdicts(files, log)
    paired = _paired(files) if pairs else frozenset()
    for row in _rows(files):
        if row is None or row.get("kind") not in (("answer", "pair") if pairs else ("answer",)):
            continue
        is_pair = row["kind"] == "pair"
        if is_pair != (_key(row) in paired):
            continue
        answer = _answer(row | _ALL_DRAWN if is_pair else row, verdicts, labels)
        if answer is None:
            log.unusable += 1
        elif answer.at_s > until_s:
            log.too_young += 1
        elif answer.basis is None:
            log.no_basis += 1
        else:
            part = parts.setdefault(answer.basis, Part())
            recent.append((answer.at_s, answer.basis))
            part.answers += 1
            part.pairs += is_pair
            variant = part.variants.setdefault(
                answer.variant, VariantLog(answer.variant, str(row.get("model", "")))
            )
            variant.seen.append(answer.seen)
            variant.silent += answer.is_silent
    if parts:
        # Replicas' logs are read one after the other: the last line need not be the newest one. While the
        # best node is away for a moment answers name another best variant: a few of them revoke nothing.
        counts = Counter(basis for _, basis in nlargest(NEWEST, recent, key=itemgetter(0)))
        log.basis = max(counts, key=counts.__getitem__)
        log.part = parts[log.basis]
        log.other_basis = sum(part.answers for part in parts.values()) - log.part.answers
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


def _answer(row: dict[str, Any], verdicts: Verdicts, labels: Counter[Key]) -> _Answer | None:
    """None for a row that cannot be used."""
    difficulty, propensity = _number(row.get("difficulty")), _number(row.get("propensity"))
    at_s, drawn, digest = _number(row.get("at_s")), row.get("drawn"), row.get("variant")
    if not (0.0 <= difficulty <= 1.0 and 0.0 < propensity <= 1.0 and math.isfinite(at_s)):
        return None
    if not (isinstance(drawn, bool) and isinstance(digest, str) and digest):
        return None
    if not drawn:
        return _Answer(Seen(difficulty, propensity), at_s, digest, False, _basis(row))
    key = _key(row)
    variant = digest if row.get("kind") == "pair" else ""
    worse = verdicts.get((*key, variant))
    if worse is None and labels[_label(key)] == 1:
        # Over HTTP a caller knows its request's label, not the number behind it.
        worse = verdicts.get((*_label(key), variant))
    seen = Seen(difficulty, propensity, 1.0 if worse is None else float(worse))
    return _Answer(seen, at_s, digest, worse is None, _basis(row))


def _basis(row: dict[str, Any]) -> Basis | None:
    complexity, best = row.get("complexity"), row.get("best")
    if isinstance(complexity, str) and isinstance(best, str) and complexity and best:
        return Basis(complexity, best)
    return None


def _number(value: object) -> float:
    """NaN for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


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
                except (ValueError, RecursionError):
                    value = None
                yield value if isinstance(value, dict) else None
