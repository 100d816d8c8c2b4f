"""What is told of a calibration: a table, what was left out, and what is certified no more."""

from __future__ import annotations

from typing import Any, NamedTuple

from tidegate.routing.certificates import Basis, Certified
from tidegate.routing.certify import Promise, Verdict
from tidegate_cli.calibrate.outcomes import Log, VariantLog
from tidegate_cli.calibrate.versions import Version
from tidegate_cli.render import table

HEADER = [
    "variant",
    "model",
    "answers",
    "judged",
    "silent",
    "worse",
    "if it answered all",
    "certified",
    "missing",
]
_DIGEST_CHARS = 19
Found = list[tuple[VariantLog, Verdict]]


class Lost(NamedTuple):
    """A variant that the version in force certifies further, or with a stricter promise."""

    variant: str
    before: float
    now: float | None


def lost(before: Certified, now: Certified) -> list[Lost]:
    """What a new version takes back of the one in force."""
    found = []
    for digest, old in before.by_variant.items():
        new = now.by_variant.get(digest)
        if new is None or new.threshold < old.threshold or new.worse_share > old.worse_share:
            found.append(Lost(digest, old.threshold, None if new is None else new.threshold))
    return found


def left_out(log: Log) -> list[str]:
    """A sentence for each sort of lines that do not count."""
    sorts = (
        (log.too_young, "answers are too young to be counted"),
        (
            log.other_basis,
            "answers are left out: of another complexity model, or beside another best variant",
        ),
        (log.no_basis, "answers are left out: an older gateway named no complexity model and best variant"),
        (log.unusable, "lines could not be used"),
    )
    return [f"{count} {words}" for count, words in sorts if count]


def told(log: Log, found: Found, promise: Promise) -> list[str]:
    """The table and what it is about."""
    sure = f"at most {promise.worse_share:.1%} of all answers worse, {promise.confidence:.0%} sure"
    lines = [f"promise: {sure}", *(basis_told(log.basis) if log.basis else ())]
    lines.append(table(HEADER, [_row(each, verdict) for each, verdict in found]))
    if any(each.silent for each, _ in found):
        lines.append("silent: drawn for a verdict and none came; they count as worse")
    lines.append("missing: to the next difficulty, if none of them is worse")
    if log.part.pairs:
        lines.append(f"{log.part.pairs} of the answers are of pairs, beside the best variant's")
    return [*lines, *left_out(log)]


def basis_told(basis: Basis) -> list[str]:
    return [f"by complexity model {basis.complexity}, beside the best variant {basis.best[:_DIGEST_CHARS]}"]


def lost_told(before: Version, losses: list[Lost], basis: Basis | None) -> list[str]:
    """Why gateways now send less to a variant than with the version before."""
    if not losses:
        return []
    lines = [f"this certifies less than version {before.number}, which was in force so far:"]
    for each in losses:
        now = "no more" if each.now is None else f"now to {each.now:.1f}"
        lines.append(f"  {each.variant[:_DIGEST_CHARS]} to difficulty {each.before:.1f}, {now}")
    if before.certified.basis != basis:
        lines.append("  that version was of another complexity model, or beside another best variant")
    return lines


def _row(log: VariantLog, verdict: Verdict) -> list[str]:
    return [
        log.digest[:_DIGEST_CHARS],
        log.model,
        str(verdict.requests),
        str(verdict.labels - log.silent),
        str(log.silent),
        f"{verdict.worse - log.silent:.0f}",
        f"{max(verdict.estimate, 0.0):.1%} worse",
        "no" if verdict.threshold is None else f"to difficulty {verdict.threshold:.1f}",
        f"{verdict.labels_missing} verdicts" if verdict.labels_missing else "-",
    ]


def versions_told(rows: list[list[Any]]) -> str:
    return table(["version", "variants", "certified", "complexity model", "best variant", "in force"], rows)
