"""`tidegate-edge bench`: a model's speed curves on this device."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from edge_node.commands.common import find_model, parser_of, positive, say, say_json, teller
from edge_node.settings import EdgeSettings
from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp.bundled import default_models_dir
from serving.engines.llama_cpp.catalog import file_digest
from serving.engines.llama_cpp.gguf_check import check_gguf
from serving.engines.llama_cpp.variants import curves
from serving.engines.llama_cpp.variants.curve import best_threads, cores, threads_to_try
from serving.settings import load_settings

ABOUT = (
    "Measures prefill and decode speed at several batch sizes and numbers of threads, and keeps the curves "
    "in the node's state folder, from which a daemon starts. It measures by itself when it is idle; this is "
    "more thorough. Best done while nothing else runs: as many threads as cores are only fast "
    "on a device that is otherwise idle. Curves with layers on a GPU are shown and not kept: a daemon with a "
    "GPU measures at every start."
)


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    tell = teller(is_json=options.json)
    source = find_model(options.model, default_models_dir())
    check_gguf(source)
    folder = load_settings(EdgeSettings, options.config).state_folder() / curves.FOLDER
    if options.show:
        found = curves.load(folder, file_digest(source))
        if found is None:
            raise EngineUnavailable(f"{source.name} was not measured here: run it without --show")
    else:
        found = curves.measure_curves(
            source,
            threads=options.threads or ([1] if options.gpu_layers else threads_to_try(cores())),
            sizes=options.sizes,
            now_s=time.time(),
            progress=tell,
            gpu_layers=options.gpu_layers,
        )
        if not options.gpu_layers:
            tell(f"kept in {curves.save(found, folder)}")
    if options.json:
        say_json(asdict(found))
        return 0
    for line in curves.lines(found):
        say(line)
    if options.gpu_layers:
        return 0
    most = max(size for curve in found.curves for size, _ in curve.decode)
    one, many = (curves.fastest_threads(found, size) for size in (1, most))
    say(f"\nfastest here: {one} for one sequence, {many} for {most} (engine.llama_cpp.threads)")
    say(f"a daemon that sets no threads takes {best_threads(found.curves)}")
    if found.hardware != curves.hardware():
        say(f"not counted: this device is {curves.hardware()}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("bench", ABOUT)
    parser.add_argument(
        "--threads",
        type=_numbers,
        metavar="N,...",
        help="numbers of threads (1, 2, 4, ... up to the cores; 1 with a GPU)",
    )
    parser.add_argument(
        "--gpu-layers", type=int, default=0, metavar="N", help="layers on a GPU, -1 for all (0)"
    )
    parser.add_argument(
        "--sizes", type=_numbers, default=[1, 2, 4, 8], metavar="N,...", help="sequences at once (1,2,4,8)"
    )
    parser.add_argument("--show", action="store_true", help="show what was measured last, measure nothing")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the daemon's settings, for state_dir")
    return parser


def _numbers(text: str) -> list[int]:
    return sorted({positive(word) for word in text.split(",")})
