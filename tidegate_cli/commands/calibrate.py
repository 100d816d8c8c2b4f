"""`tidegate calibrate`"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tidegate.routing.certify import Promise, Verdict, certify
from tidegate_cli.calibrate.outcomes import Log, VariantLog, read
from tidegate_cli.calibrate.versions import Versions
from tidegate_cli.render import as_json, table
from tidegate_cli.stack import ChildFailed

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


class CalibrateCommand:
    name = "calibrate"
    help = "certify from outcomes that a variant's answers are good enough, or say what is missing"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--log", type=Path, nargs="+", default=[], help="outcome logs (quality.outcome_log)"
        )
        parser.add_argument("--store", type=Path, help="folder of certificates (quality.certificates)")
        parser.add_argument(
            "--worse", type=float, default=0.02, help="promise: share of answers that are worse"
        )
        parser.add_argument("--confidence", type=float, default=0.95, help="of the promise")
        parser.add_argument(
            "--settle-hours",
            type=float,
            default=24.0,
            help="leave out answers younger than this: their verdicts may still come",
        )
        parser.add_argument(
            "--pairs",
            action="store_true",
            help="count requests whose copy was answered by a second variant; all of them must be judged",
        )
        parser.add_argument("--dry-run", action="store_true", help="store nothing")
        parser.add_argument("--list", action="store_true", help="list the versions in the store")
        parser.add_argument("--rollback", type=int, metavar="VERSION", help="put this version in force again")
        parser.add_argument("--json", action="store_true", help="machine-readable")

    async def run(self, args: argparse.Namespace) -> int:
        if args.store is None and not args.dry_run:
            raise ChildFailed("--store FOLDER says where certificates are kept; --dry-run keeps none")
        if args.list or args.rollback is not None:
            return _versions(args)
        if not args.log:
            raise ChildFailed("--log FILE says where the outcomes are")
        try:
            promise = Promise(args.worse, args.confidence)
        except ValueError as error:
            raise ChildFailed(str(error)) from None
        now_s = time.time()
        log = read(args.log, until_s=now_s - 3600.0 * args.settle_hours, pairs=args.pairs)
        found = {
            digest: (each, certify(each.seen, promise, each.floor)) for digest, each in log.variants.items()
        }
        certificates = {
            "created_s": round(now_s),
            "promise": asdict(promise),
            "variants": {digest: _facts(each, verdict, promise) for digest, (each, verdict) in found.items()},
        }
        version = None if args.dry_run else Versions(args.store).add(certificates)
        if args.json:
            print(as_json({"version": version, **certificates}))
        else:
            print(_told(log, list(found.values()), promise, version))
        return 0


def _versions(args: argparse.Namespace) -> int:
    versions = Versions(args.store)
    if args.rollback is not None:
        versions.put_in_force(args.rollback)
        print(f"version {args.rollback} is in force")
        return 0
    in_force = versions.in_force()
    rows = []
    for number in versions.numbers():
        variants = versions.read(number)["variants"].values()
        certified = sum(each["threshold"] is not None for each in variants)
        rows.append([str(number), str(len(variants)), str(certified), "yes" if number == in_force else ""])
    print(table(["version", "variants", "certified", "in force"], rows))
    return 0


def _facts(log: VariantLog, verdict: Verdict, promise: Promise) -> dict[str, Any]:
    return {
        "model": log.model,
        "worse_share": promise.worse_share,
        "silent": log.silent,
        **asdict(verdict),
    }


def _told(log: Log, found: list[tuple[VariantLog, Verdict]], promise: Promise, version: int | None) -> str:
    sure = f"at most {promise.worse_share:.1%} of all answers worse, {promise.confidence:.0%} sure"
    lines = [f"promise: {sure}"]
    rows = []
    for each, verdict in found:
        certified = verdict.threshold is not None
        rows.append(
            [
                each.digest[:19],
                each.model,
                str(verdict.requests),
                str(verdict.labels - each.silent),
                str(each.silent),
                f"{verdict.worse - each.silent:.0f}",
                f"{max(verdict.estimate, 0.0):.1%} worse",
                f"to difficulty {verdict.threshold:.1f}" if certified else "no",
                f"{verdict.labels_missing} verdicts" if verdict.labels_missing else "-",
            ]
        )
    lines.append(table(HEADER, rows))
    if any(each.silent for each, _ in found):
        lines.append("silent: drawn for a verdict and none came; they count as worse")
    lines.append("missing: to the next difficulty, if none of them is worse")
    if log.pairs:
        lines.append(f"{log.pairs} of the answers are of pairs, beside the best variant's")
    if log.too_young:
        lines.append(f"{log.too_young} answers are too young to be counted")
    if log.unusable:
        lines.append(f"{log.unusable} lines could not be used")
    lines.append("nothing stored" if version is None else f"version {version} is in force")
    return "\n".join(lines)
