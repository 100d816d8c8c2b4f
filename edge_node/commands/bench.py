"""`tidegate-edge bench`: a model's speed curves on this device."""

from __future__ import annotations

import argparse
import datetime
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from edge_node.commands.common import find_model, parser_of, positive, say, say_json, teller
from edge_node.settings import EdgeSettings
from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp.bundled import default_models_dir
from serving.engines.llama_cpp.catalog import file_digest
from serving.engines.llama_cpp.variants import curves
from serving.settings import load_settings

ABOUT = (
    "Measures prefill and decode speed at several batch sizes and numbers of threads, and keeps the curves "
    "in the node's state folder. Best done while nothing else runs: as many threads as cores are only fast "
    "on a device that is otherwise idle."
)
FOLDER = "bench"


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    tell = teller(is_json=options.json)
    source = find_model(options.model, default_models_dir())
    folder = load_settings(EdgeSettings, options.config).state_folder() / FOLDER
    if options.show:
        found = curves.load(folder, file_digest(source))
        if found is None:
            raise EngineUnavailable(f"{source.name} was not measured here: run it without --show")
    else:
        today = datetime.date.today().isoformat()
        found = curves.measure_curves(
            source, threads=options.threads, sizes=options.sizes, today=today, progress=tell
        )
        tell(f"kept in {curves.save(found, folder)}")
    if options.json:
        say_json(asdict(found))
        return 0
    for line in curves.lines(found):
        say(line)
    one, many = (curves.fastest_threads(found, size) for size in (1, max(options.sizes)))
    say(f"\nfastest here: {one} for one sequence, {many} for {max(options.sizes)} (engine.llama_cpp.threads)")
    return 0


def _parser() -> argparse.ArgumentParser:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = parser_of("bench", ABOUT)
    parser.add_argument(
        "--threads",
        type=_numbers,
        default=threads_to_try(cores),
        metavar="N,...",
        help="numbers of threads (1, 2, 4, ... up to the cores)",
    )
    parser.add_argument(
        "--sizes", type=_numbers, default=[1, 2, 4, 8], metavar="N,...", help="sequences at once (1,2,4,8)"
    )
    parser.add_argument("--show", action="store_true", help="show what was measured last, measure nothing")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the daemon's settings, for state_dir")
    return parser


def threads_to_try(cores: int) -> list[int]:
    """Powers of two below the number of cores, and that number."""
    return sorted({*(1 << bits for bits in range(cores.bit_length()) if 1 << bits < cores), cores})


def _numbers(text: str) -> list[int]:
    return sorted({positive(word) for word in text.split(",")})
