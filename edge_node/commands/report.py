"""`tidegate-edge report`: every variant of a model measured on this device."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from pathlib import Path

from edge_node.commands.common import (
    add_making,
    default_name,
    find_model,
    parser_of,
    positive,
    say,
    say_json,
    teller,
)
from serving.engines.llama_cpp.gguf_check import unknown_quantization
from serving.engines.llama_cpp.variants.report import ReportSettings, Wanted, existing_variants, measure_all
from serving.engines.llama_cpp.variants.show import advice, as_json, plot, table

ABOUT = (
    "Measures a model and its variants on this device: size, time to load, memory, prefill and decode speed, "
    "perplexity on a short text, and the share of right answers to 60 small questions. What is missing is "
    "made first. The figures are kept in each file's catalog entry; the node announces the perplexity."
)
_FIRST_CHOICE = (Wanted("Q8_0"), Wanted("Q4_0"))


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    tell = teller(is_json=options.json)
    source = find_model(options.model, options.out)
    settings = ReportSettings(
        folder=options.out,
        today=datetime.date.today().isoformat(),
        threads=options.threads,
        slots=options.slots,
        context_tokens=options.context,
        search_max_s=options.max_s,
        again=options.again,
        model=options.name or default_name(options.model),
    )
    wanted = options.variants or existing_variants(source, options.out) or _FIRST_CHOICE
    rows = measure_all(source, wanted, settings, tell)
    if options.plot is not None:
        plot(rows, options.plot)
    if options.json:
        say_json([as_json(row, rows[0]) for row in rows])
        return 0
    say(f"\n{rows[0].entry.model} on {rows[0].figures.hardware_class}, {rows[0].figures.measured_on}\n")
    say(table(rows))
    for line in advice(rows):
        say(line)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("report", ABOUT)
    parser.add_argument(
        "--variants",
        type=_variants,
        default=[],
        metavar="V,...",
        help="such as F16,Q8_0,Q4_0,pruned:2; unset takes what was made before, else Q8_0,Q4_0",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also plot quality against speed")
    parser.add_argument("--slots", type=positive, default=4, help="sequences at once (%(default)s)")
    parser.add_argument(
        "--context", type=_context, default=512, help="tokens of cache per sequence (%(default)s)"
    )
    parser.add_argument("--again", action="store_true", help="measure again what was measured before")
    parser.add_argument("--max-s", type=float, default=600.0, help="longest search for layers (%(default)g)")
    add_making(parser)
    return parser


def _variants(text: str) -> list[Wanted]:
    try:
        found = list(dict.fromkeys(Wanted.parse(word) for word in text.split(",") if word.strip()))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if problem := unknown_quantization(each.quantization for each in found):
        raise argparse.ArgumentTypeError(problem)
    return found


def _context(text: str) -> int:
    if positive(text) < 128:
        raise argparse.ArgumentTypeError("must be 128 or more")
    return int(text)
