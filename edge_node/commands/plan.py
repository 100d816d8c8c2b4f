"""`tidegate-edge plan`: the memory that a model will need here, line by line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from edge_node.commands.common import find_model, parser_of, positive, say, say_json
from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp.attention import uses_flash
from serving.engines.llama_cpp.bundled import default_models_dir
from serving.engines.llama_cpp.gguf_check import read_gguf
from serving.engines.llama_cpp.variants.memory import available_memory
from serving.engines.llama_cpp.variants.plan import KV_BYTES, Load, Shape, lines, model_bytes, plan

ABOUT = (
    "Prints what a model needs in memory, and whether this device has it: reclaimable memory counts as free, "
    "limits of control groups (containers, services) are respected. Exit code 1 when it does not fit. The "
    "engine makes the same check before it loads a model (engine.llama_cpp.fit_check)."
)


def main(arguments: Sequence[str]) -> int:
    parser = parser_of("plan", ABOUT)
    parser.add_argument("--slots", type=positive, default=4, help="sequences at once (%(default)s)")
    parser.add_argument(
        "--context", type=positive, default=2048, help="prompt and answer of one sequence (%(default)s)"
    )
    parser.add_argument("--kv-type", choices=sorted(KV_BYTES), default="f16", help="cache type (%(default)s)")
    parser.add_argument("--batch", type=positive, default=512, help="most tokens of one step (%(default)s)")
    options = parser.parse_args(arguments)
    source = find_model(options.model, default_models_dir())
    shape = Shape.of(read_gguf(source), model_bytes(source))
    available = available_memory()
    if available is None:
        raise EngineUnavailable("this system does not tell how much memory is available")
    flash = uses_flash("auto", options.kv_type, 0)
    load = Load(options.slots, options.context, options.kv_type, options.batch, flash)
    found = plan(shape, load, available)
    if options.json:
        say_json(asdict(found) | {"total": found.budget.total, "fits": found.fits})
    else:
        if found.load != load:
            say(f"the model was trained for {shape.context_train} tokens: no more is used")
        for line in lines(found):
            say(line)
    return 0 if found.fits else 1
