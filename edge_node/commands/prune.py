"""`tidegate-edge prune`: variants of a model without some of its layers."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict

from edge_node.commands.common import (
    add_making,
    default_name,
    find_model,
    parser_of,
    positive,
    quantizations,
    say,
    say_json,
    teller,
)
from serving.engines.llama_cpp.gguf_check import read_gguf
from serving.engines.llama_cpp.prepare import prepare
from serving.engines.llama_cpp.variants.layers import Choice, LayerSearch, check_layers

ABOUT = (
    "Leaves whole layers out of a model: faster and smaller in proportion, and worse. `auto` measures the "
    "perplexity without each single layer on a short text, then takes the least harmful; the figures are "
    "kept for the next time. The first and last layer always stay. Perplexity is measured on everything made."
)


def main(arguments: Sequence[str]) -> int:
    parser = parser_of("prune", ABOUT)
    parser.add_argument(
        "--layers", type=_layers, default=(), metavar="auto|LIST", help="such as 4,26; auto searches (auto)"
    )
    parser.add_argument("--count", type=positive, default=1, help="layers that auto leaves out (%(default)s)")
    parser.add_argument(
        "--to", type=quantizations, default=["Q4_0"], metavar="Q,...", help="quantizations to write (Q4_0)"
    )
    parser.add_argument("--max-s", type=float, default=600.0, help="longest search, in seconds (%(default)g)")
    add_making(parser)
    options = parser.parse_args(arguments)
    tell = teller(is_json=options.json)
    source = find_model(options.model, options.out)
    choice: Choice | None = None
    if options.layers:
        layers = check_layers(options.layers, read_gguf(source).number("block_count"))
    else:
        search = LayerSearch(source, options.out, threads=options.threads, max_s=options.max_s, progress=tell)
        search.check_count(options.count)
        whole = search.whole()
        choice = search.choose(options.count)
        layers = choice.layers
        tell(harm_line(choice, whole))
    name = options.name or default_name(options.model)
    made = prepare(
        source, options.to, options.out, model=name, layers=layers, threads=options.threads, progress=tell
    )
    if options.json:
        singles = choice.singles if choice is not None else {}
        variants = [{"path": str(variant.path)} | asdict(variant.entry) for variant in made]
        say_json({"layers": layers, "perplexity_without": singles, "variants": variants})
    else:
        say(f"left out: {', '.join(map(str, layers))}; `tidegate-edge report` shows what that costs")
    return 0


def _layers(text: str) -> tuple[int, ...]:
    if text.strip().lower() == "auto":
        return ()
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError("write `auto`, or numbers like 4,26") from None


def harm_line(choice: Choice, whole: float) -> str:
    """How much worse the model gets without each single layer, the least harmful first."""
    ranked = sorted(choice.singles, key=lambda layer: choice.singles[layer])
    harms = [f"{layer} {_percent(choice.singles[layer] / whole)}" for layer in ranked]
    shown = harms if len(harms) <= 8 else [*harms[:5], "...", *harms[-2:]]
    return f"perplexity without one layer: {', '.join(shown)}"


def _percent(ratio: float) -> str:
    return f"{ratio - 1:+.0%}" if math.isfinite(ratio) and ratio < 100 else "destroyed"
