"""`tidegate-edge quantize`: smaller variants of a model, each with its catalog entry."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict

from edge_node.commands.common import (
    add_making,
    default_name,
    find_model,
    parser_of,
    quantizations,
    say,
    say_json,
    teller,
)
from serving.engines.llama_cpp.gguf_check import GgufContents, fallback_tensors, read_gguf
from serving.engines.llama_cpp.prepare import PreparedModel, prepare

ABOUT = (
    "Writes NAME.QUANTIZATION.gguf for each quantization, measures its perplexity, and keeps both in a "
    "catalog entry beside it. Files appear whole or not at all; what is there already is kept. F16 and Q8_0 "
    "lose almost nothing, Q4_0 is the fastest on most CPUs; docs/models.md helps to choose."
)


def main(arguments: Sequence[str]) -> int:
    parser = parser_of("quantize", ABOUT)
    parser.add_argument(
        "--to", type=quantizations, default=["Q4_0"], metavar="Q,...", help="such as Q8_0,Q4_K_M,Q4_0 (Q4_0)"
    )
    add_making(parser)
    options = parser.parse_args(arguments)
    tell = teller(is_json=options.json)
    source = find_model(options.model, options.out)
    kind = read_gguf(source).header.quantization
    if kind not in ("F32", "F16", "BF16"):
        tell(f"{source.name} is {kind or 'quantized'} already: no variant gets better than that")
    name = options.name or default_name(options.model)
    made = prepare(source, options.to, options.out, model=name, threads=options.threads, progress=tell)
    if options.json:
        say_json([_facts(variant) for variant in made])
        return 0
    for variant in made:
        for line in fallback_lines(read_gguf(variant.path), variant.entry.quantization):
            say(f"{variant.path.name}: {line}")
    say("serve one with:")
    for variant in made:
        say(f"  TIDEGATE_EDGE__ENGINE__MODEL={shlex.quote(str(variant.path))} tidegate-edge")
    return 0


def fallback_lines(contents: GgufContents, quantization: str) -> list[str]:
    """Says plainly where a quantization could not do what its name says; empty where it could."""
    fell = fallback_tensors(contents, quantization)
    if not fell:
        return []
    weights = sum(1 for t in contents.tensors if len(t.shape) > 1)
    rows = ", ".join(str(size) for size in sorted({t.shape[0] for t in fell}))
    kinds = ", ".join(sorted({t.type for t in fell}))
    return [
        f"{len(fell)} of {weights} weight tensors fell back to {kinds}: their rows of {rows} do not divide "
        f"by 256, which {quantization} needs; the file is larger than its name says"
    ]


def _facts(variant: PreparedModel) -> dict[str, object]:
    return {"path": str(variant.path)} | asdict(variant.entry)
