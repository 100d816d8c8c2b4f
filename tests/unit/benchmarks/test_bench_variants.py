"""The rows of bench-variants: every variant there, and a missing one noticed."""

from __future__ import annotations

from pathlib import Path

from benchmarks.bench_variants import NEEDED, WANTED, rows_of
from serving.engines.llama_cpp.catalog import CatalogEntry, Figures
from serving.engines.llama_cpp.variants.report import ReportRow, Wanted


def reported(name: str) -> ReportRow:
    wanted = Wanted.parse(name)
    figures = Figures("cpu/1t", "2026-01-02", 1, 4, 512, 90.0, 2, 1, 0, 100.0, 50.0, 80.0, 0.75, 60)
    layers = tuple(range(1, wanted.pruned + 1))
    entry = CatalogEntry("m", wanted.quantization, "d", 9, 1, 8192, 30.0, "", "", layers, 0, figures)
    return ReportRow(Path("m.gguf"), "" if name == "F16" else wanted.name, entry, figures)


def test_all_that_are_asked_for_hold_the_bar() -> None:
    rows = rows_of([reported(name) for name in WANTED])
    assert all(r.holds for r in rows)
    named = {r.name.rpartition(" perplexity")[0] for r in rows if r.name.endswith(" perplexity")}
    assert named == set(WANTED) >= set(NEEDED)


def test_a_missing_variant_misses_the_bar() -> None:
    rows = rows_of([reported(name) for name in WANTED if name != "pruned:4"])
    (bar,) = (r for r in rows if r.bar is not None)
    assert (bar.value, bar.holds) == (1, False)
