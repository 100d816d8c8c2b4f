"""`tidegate-edge plan`: the memory that a model will need here, line by line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from edge_node.commands.common import find_model, parser_of, positive, say, say_json
from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp.bundled import default_models_dir
from serving.engines.llama_cpp.gguf_check import read_gguf
from serving.engines.llama_cpp.variants.choose import Wish, choose
from serving.engines.llama_cpp.variants.memory import available_memory
from serving.engines.llama_cpp.variants.plan import KV_BYTES, Shape, lines, model_bytes, plan

ABOUT = (
    "Prints what a model needs in memory, and whether this device has it: reclaimable memory counts as free, "
    "limits of control groups (containers, services) are respected. What is not given is chosen as the "
    "engine does it. Exit code 1 when it does not fit. The engine makes the same check before it loads a "
    "model (engine.llama_cpp.fit_check)."
)


def main(arguments: Sequence[str]) -> int:
    parser = parser_of("plan", ABOUT)
    parser.add_argument("--slots", type=positive, default=0, help="sequences at once (chosen to fit)")
    parser.add_argument(
        "--context", type=positive, default=0, help="prompt and answer of one sequence (chosen to fit)"
    )
    parser.add_argument(
        "--kv-type", choices=("auto", *sorted(KV_BYTES)), default="auto", help="cache type (chosen to fit)"
    )
    parser.add_argument("--batch", type=positive, default=0, help="most tokens of one step (chosen to fit)")
    options = parser.parse_args(arguments)
    source = find_model(options.model, default_models_dir())
    shape = Shape.of(read_gguf(source), model_bytes(source))
    available = available_memory()
    if available is None:
        raise EngineUnavailable("this system does not tell how much memory is available")
    wish = Wish(options.slots, options.context, options.kv_type, options.batch)
    load = choose(shape, wish, available, with_daemon=True)
    found = plan(shape, load, available)
    if options.json:
        say_json(asdict(found) | {"total": found.budget.total, "fits": found.fits})
    else:
        if 0 < shape.context_train < options.context:
            say(f"the model was trained for {shape.context_train} tokens: no more is used")
        if wish.is_open:
            say(
                f"chosen where nothing was set: {load.slots} slots of {load.context_tokens} tokens, "
                f"{load.kv_type}, steps of {load.n_batch}"
            )
        for line in lines(found):
            say(line)
    return 0 if found.fits else 1
