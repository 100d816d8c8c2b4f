"""What each variant of the bundled model costs in quality and gains in speed, on this machine.

Everything is derived from one F16 file, made once from the bundled model. Each row is one that
`tidegate-edge report F16_FILE --variants NAME` repeats by itself. Speed, memory and answers are measured at
every run, one file after the other; files, perplexities and the search for spare layers are kept.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import sys
from pathlib import Path

from benchmarks.common import RESULTS, CannotMeasure, Row, row, run
from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp.bundled import MODEL, bundled_model, default_models_dir
from serving.engines.llama_cpp.prepare import prepare
from serving.engines.llama_cpp.variants.report import ReportRow, ReportSettings, Wanted, measure_all
from serving.engines.llama_cpp.variants.show import advice, as_json, label, plot, table

FOLDER = default_models_dir() / "variants"
WANTED = ("F16", "Q8_0", "Q5_K_M", "Q4_K_M", "Q4_0", "Q4_1", "pruned:1", "pruned:2", "pruned:4")
# The bar names these; Q4_1 is there to show what a missing kernel costs.
NEEDED = ("F16", "Q8_0", "Q5_K_M", "Q4_K_M", "Q4_0", "pruned:1", "pruned:2", "pruned:4")


def measured() -> list[ReportRow]:
    """The F16 file as source, and every other variant. Raises CannotMeasure."""

    def tell(line: str) -> None:
        print(f"  {line}", file=sys.stderr, flush=True)

    settings = ReportSettings(
        folder=FOLDER, today=datetime.date.today().isoformat(), search_max_s=1200.0, again=True, model=MODEL
    )
    try:
        (source,) = prepare(bundled_model(), ["F16"], FOLDER, model=MODEL, progress=tell)
        wanted = [Wanted.parse(name) for name in WANTED if name != "F16"]
        return measure_all(source.path, wanted, settings, tell)
    except EngineUnavailable as error:
        raise CannotMeasure(str(error)) from error


def rows_of(report: list[ReportRow]) -> list[Row]:
    """The figures of every variant, and whether none is missing."""
    rows: list[Row] = []
    for each in report:
        name, f = each.wanted or "F16", each.figures
        rows += [
            row(f"{name} size", each.entry.bytes / 1e6, "MB"),
            row(f"{name} load", f.load_ms, "ms"),
            row(f"{name} RSS", f.rss_bytes / 1e6, "MB"),
            row(f"{name} prefill", f.prefill_tokens_per_s, "tokens/s"),
            row(f"{name} decode, 1 stream", f.decode_1_tokens_per_s, "tokens/s"),
            row(f"{name} decode, {f.slots} streams", f.decode_slots_tokens_per_s, "tokens/s"),
            row(f"{name} perplexity", each.perplexity, ""),
            row(f"{name} right answers", 100.0 * f.accuracy, "%"),
        ]
    there = {each.wanted or "F16" for each in report}
    missing = sum(name not in there for name in NEEDED)
    rows.append(row("variants without a row", missing, "", bar=0, sense="=="))
    return rows


def main() -> int:
    async def measure() -> list[Row]:
        report = await asyncio.to_thread(measured)
        show(report)
        return rows_of(report)

    return run("variants", measure)


def show(report: list[ReportRow]) -> None:
    """The table side by side, how to repeat each row, and the files beside the results."""
    print(table(report), end="\n\n")
    for line in advice(report):
        print(line)
    source = report[0].path
    print("\neach row by itself:")
    for each in report:
        what = f" --variants {each.wanted}" if each.wanted else ""
        folder = f" --out {source.parent}"
        print(f"  {label(each):<24} tidegate-edge report {source}{folder}{what} --again")
    print()
    RESULTS.mkdir(parents=True, exist_ok=True)
    plot(report, RESULTS / "variants.png")
    listed = [as_json(each, report[0]) | {"path": each.path.name} for each in report]
    details = Path(RESULTS / "variants_report.json")
    details.write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
