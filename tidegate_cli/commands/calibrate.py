"""`tidegate calibrate`"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tidegate.routing.certificates import parse
from tidegate.routing.certify import Promise, Verdict, certify
from tidegate_cli.calibrate import report
from tidegate_cli.calibrate.outcomes import Log, VariantLog, read
from tidegate_cli.calibrate.versions import NoVersion, Version, Versions
from tidegate_cli.render import as_json
from tidegate_cli.stack import ChildFailed


def hours(text: str) -> float:
    """Raises ArgumentTypeError, ValueError."""
    value = float(text)
    if not (math.isfinite(value) and value >= 0.0):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of hours from 0 on")
    return value


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
            type=hours,
            default=24.0,
            help="leave out answers younger than this: their verdicts may still come",
        )
        parser.add_argument(
            "--pairs",
            action="store_true",
            help="count requests whose copy was answered by a second variant; all of them must be judged",
        )
        parser.add_argument(
            "--replace",
            action="store_true",
            help="store also what knows none of the variants that the version in force certifies",
        )
        parser.add_argument("--dry-run", action="store_true", help="store nothing")
        parser.add_argument("--list", action="store_true", help="list the versions in the store")
        parser.add_argument("--rollback", type=int, metavar="VERSION", help="put this version in force again")
        parser.add_argument("--json", action="store_true", help="machine-readable")

    async def run(self, args: argparse.Namespace) -> int:
        looks_at_store = args.list or args.rollback is not None
        if args.store is None and (looks_at_store or not args.dry_run):
            raise ChildFailed("--store FOLDER says where certificates are kept; --dry-run keeps none")
        if looks_at_store:
            return _versions(args)
        if not args.log:
            raise ChildFailed("--log FILE says where the outcomes are")
        try:
            promise = Promise(args.worse, args.confidence)
        except ValueError as error:
            raise ChildFailed(str(error)) from None
        now_s = time.time()
        log = read(args.log, until_s=now_s - 3600.0 * args.settle_hours, pairs=args.pairs)
        if log.basis is None:
            raise ChildFailed(_nothing(log, args))
        before = None if args.store is None else Versions(args.store).in_force()
        if before is not None and not (args.replace or args.dry_run):
            _check_same_fleet(before, log)
        found = [(each, certify(each.seen, promise, each.floor)) for each in log.part.variants.values()]
        certificates = {
            "created_s": round(now_s),
            "promise": asdict(promise),
            **log.basis._asdict(),
            "variants": {each.digest: _facts(each, verdict, promise) for each, verdict in found},
        }
        losses = [] if before is None else report.lost(before.certified, parse(json.dumps(certificates)))
        version = None if args.dry_run else Versions(args.store).add(certificates)
        if args.json:
            lost = [each._asdict() for each in losses]
            print(as_json({"version": version, **certificates, "certified_less": lost}))
            return 0
        lines = report.told(log, found, promise)
        if before is not None:
            lines += report.lost_told(before, losses, log.basis)
        lines.append("nothing stored" if version is None else f"version {version} is in force")
        print("\n".join(lines))
        return 0


def _nothing(log: Log, args: argparse.Namespace) -> str:
    """A list that certifies nobody, made from a file that is no log, would revoke what is proven."""
    names = ", ".join(str(path) for path in args.log)
    reasons = "; ".join(report.left_out(log)) or "there is none"
    return f"no answer in {names} counts, so nothing is stored: {reasons}"


def _check_same_fleet(before: Version, log: Log) -> None:
    """Raises ChildFailed for a log of other variants: it proves nothing against those in force."""
    certified = before.certified.by_variant
    if certified and not certified.keys() & log.part.variants.keys():
        raise ChildFailed(
            f"nothing is stored: the log has no answer of a variant that version {before.number} certifies, "
            "so it may be another fleet's; --replace stores it all the same"
        )


def _versions(args: argparse.Namespace) -> int:
    versions = Versions(args.store)
    if args.rollback is not None:
        if args.dry_run:
            raise ChildFailed("--rollback puts a version in force, and --dry-run would not")
        found = versions.put_in_force(args.rollback)
        if found.certified.basis is None:
            print("it names no complexity model and best variant, so gateways take nothing of it")
        print(f"version {args.rollback} is in force")
        return 0
    in_force = versions.in_force()
    rows = []
    for number in versions.numbers():
        mark = "yes" if in_force is not None and number == in_force.number else ""
        try:
            found = versions.read(number)
        except NoVersion:
            rows.append([str(number), "-", "-", "cannot be read", "-", mark])
            continue
        basis = found.certified.basis
        counts = [str(len(found.facts["variants"])), str(len(found.certified.by_variant))]
        named = ["-", "-"] if basis is None else [basis.complexity, basis.best[:19]]
        rows.append([str(number), *counts, *named, mark])
    print(report.versions_told(rows))
    return 0


def _facts(log: VariantLog, verdict: Verdict, promise: Promise) -> dict[str, Any]:
    return {
        "model": log.model,
        "worse_share": promise.worse_share,
        "silent": log.silent,
        **asdict(verdict),
    }
