"""`python -m simulator`: what `tidegate simulate` starts. Exit codes: 0 done, 2 wrong arguments or files."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from simulator.fleet import load_fleet
from simulator.policies import POLICIES
from simulator.report import WARM_UP_PER_NODE, report
from simulator.run import Simulation
from simulator.tables import BadInput
from simulator.trace import MAX_TOKENS, draw, read_trace
from tidegate.routing.domain import TARGET_SHARE

Reports = dict[str, dict[str, Any]]
# Digits of a whole number among the options: what counts anything here is smaller.
LONGEST = 15


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="tidegate simulate", description="Play a trace on a fleet.")
    p.add_argument("--trace", required=True, help="Azure CSV, Mooncake JSONL, or synthetic:RATE:SECONDS")
    p.add_argument("--fleet", required=True, type=Path, help="TOML file that describes the nodes")
    who = p.add_mutually_exclusive_group()
    who.add_argument("--policy", choices=POLICIES, help="which policy decides; default tidegate")
    who.add_argument("--compare", help="several policies on the same requests: a,b,c or all")
    p.add_argument(
        "--seed", type=_least(0), default=0, help="a whole number of 0 or more; same seed, same result"
    )
    p.add_argument("--rate", type=_above(0.0), help="requests per second on average; default: as recorded")
    p.add_argument("--limit", type=_least(1), help="only the first so many requests of the file")
    p.add_argument("--max-tokens", type=_least(1), default=MAX_TOKENS, help="what requests ask for at most")
    p.add_argument(
        "--target-share",
        type=_above(0.0, 1.0),
        default=TARGET_SHARE,
        help="share that must meet the budget (default: the gateway's)",
    )
    p.add_argument(
        "--warm-up", type=_least(0), default=WARM_UP_PER_NODE, help="requests per node not counted"
    )
    p.add_argument("--json", action="store_true", help="machine-readable")
    p.add_argument("--plot", type=Path, help="picture of the comparison (needs the extra `report`)")
    return p


def _least(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or (len(text) <= LONGEST and int(text) < least):
            raise argparse.ArgumentTypeError(f"must be a whole number of {least} or more")
        if len(text) > LONGEST:
            raise argparse.ArgumentTypeError(f"must have at most {LONGEST} digits")
        return int(text)

    return read


def _above(low: float, high: float = math.inf) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low < value < high:
            below = "" if high == math.inf else f" and below {high:g}"
            raise argparse.ArgumentTypeError(f"must be a number above {low:g}{below}")
        return value

    return read


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        names = [args.policy or "tidegate"] if args.compare is None else _compared(args.compare)
        draw_figure = None if args.plot is None else _plotter(args.plot)
        reports = _play(args, names)
        # Before the picture: figures that took minutes must not be lost to a full disk.
        if args.json:
            print(json.dumps(reports if args.compare is not None else reports[names[0]], indent=1))
        else:
            _table(reports)
        if draw_figure is not None:
            draw_figure(reports)
    except BadInput as error:
        sys.stderr.write(f"tidegate simulate: {error}\n")
        return 2
    return 0


def _compared(text: str) -> list[str]:
    """Each policy once, in the order given. Raises BadInput."""
    names = list(dict.fromkeys(name for each in text.split(",") if (name := each.strip())))
    if names == ["all"]:
        return list(POLICIES)
    if not names:
        raise BadInput(f"--compare names no policy; known: {', '.join(POLICIES)}")
    unknown = [name for name in names if name not in POLICIES]
    if unknown:
        raise BadInput(f"unknown policy {', '.join(unknown)}; known: {', '.join(POLICIES)}")
    return names


def _play(args: argparse.Namespace, names: Sequence[str]) -> Reports:
    fleet = load_fleet(args.fleet)
    arrivals = draw(
        read_trace(args.trace, args.limit), fleet, seed=args.seed, rate=args.rate, max_tokens=args.max_tokens
    )
    if len(arrivals) <= args.warm_up * len(fleet.nodes):
        raise BadInput(
            f"all {len(arrivals)} requests are warm-up, {args.warm_up} for each of {len(fleet.nodes)} nodes: "
            "take a longer trace or a smaller --warm-up"
        )
    reports: Reports = {}
    for name in names:
        began_s = perf_counter()
        served = Simulation(fleet, arrivals, name, seed=args.seed, target_share=args.target_share).run()
        took_s = perf_counter() - began_s
        reports[name] = {"policy": name, **report(fleet, served, warm_up_per_node=args.warm_up)}
        sys.stderr.write(f"{name}: {len(arrivals) / took_s:.0f} requests/s\n")
    return reports


def _table(reports: Reports) -> None:
    print(f"{'policy':18} {'met':>6} {'good':>6} {'cloud':>6} {'p50':>8} {'p95 TTFT':>9} {'hits':>6} refused")
    for name, r in reports.items():
        t = r["ttft_ms"]["all"]
        print(
            f"{name:18} {r['slo_attainment']:6.1%} {r['good_attainment']:6.1%} "
            f"{r['cloud_share_requests']:6.1%} {t['p50']:8.0f} {t['p95']:9.0f} "
            f"{r['prefix_hit_rate']:6.1%} {r['rejected']}"
        )


def _plotter(path: Path) -> Callable[[Reports], None]:
    """What draws the picture. Raises BadInput at once for what could not be drawn after the run."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BadInput("--plot needs matplotlib: pip install 'tidegate-services[report]'") from error
    figure = Figure(figsize=(7, 4), layout="constrained")
    formats = sorted(figure.canvas.get_supported_filetypes())
    folder = path.absolute().parent
    if path.suffix and path.suffix[1:].lower() not in formats:
        raise BadInput(f"--plot: {path} must end in one of {', '.join(formats)}")
    if not folder.is_dir():
        raise BadInput(f"--plot: there is no folder {path.parent}")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise BadInput(f"--plot: {path} cannot be written")

    def plot(reports: Reports) -> None:
        axes = figure.add_subplot()
        for name, r in reports.items():
            axes.plot(r["cloud_share_requests"] * 100, r["slo_attainment"] * 100, "o", label=name)
        axes.set(xlabel="requests on the cloud, %", ylabel="budgets met, %")
        axes.legend(fontsize="small")
        try:
            figure.savefig(path)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise BadInput(f"--plot: {error}") from error

    return plot


if __name__ == "__main__":
    sys.exit(main())
