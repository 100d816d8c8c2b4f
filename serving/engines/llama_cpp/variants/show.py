"""A report for people: the table, what it advises, and the plot of quality against speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp.slow_kernel import EXPECTED_PREFILL_GAIN, FAST_TYPE, is_slow
from serving.engines.llama_cpp.variants.report import ReportRow

_WORTH_TELLING = 1.3
_MIB = 1024 * 1024


def label(row: ReportRow) -> str:
    """The variant in one word: "Q4_0", "Q4_0 without 4,26", "source (Q4_1)"."""
    if not row.wanted:
        return f"source ({row.entry.quantization or '?'})"
    layers = ",".join(map(str, row.entry.pruned_layers))
    return f"{row.entry.quantization} without {layers}" if layers else row.entry.quantization


def table(rows: Sequence[ReportRow]) -> str:
    """Sizes in MB (10^6), memory in MiB, rates in tokens/s."""
    slots = rows[0].figures.slots
    rates = ("prefill", "decode 1", f"decode {slots}")
    cells: list[tuple[str, ...]] = [
        ("variant", "MB", "load ms", "RSS", "PSS", *rates, "perplexity", "to source", "answers")
    ]
    for row in rows:
        f = row.figures
        speed = (f.prefill_tokens_per_s, f.decode_1_tokens_per_s, f.decode_slots_tokens_per_s)
        cells.append(
            (
                label(row),
                f"{row.entry.bytes / 1e6:.0f}",
                f"{f.load_ms:.0f}",
                f"{f.rss_bytes / _MIB:.0f}",
                f"{f.pss_bytes / _MIB:.0f}",
                *(f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}" for rate in speed),
                f"{row.perplexity:.2f}",
                f"{row.perplexity / rows[0].perplexity - 1:+.1%}",
                f"{f.accuracy:.0%}",
            )
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )


def advice(rows: Sequence[ReportRow]) -> list[str]:
    """Sentences on variants that this processor has no fast kernel for, and on fallen-back ones."""
    lines = []
    for row in rows:
        f = row.figures
        if is_slow(row.entry.quantization, f.repacked_bytes):
            lines.append(f"{label(row)}: {_slow_kernel(row, rows)}")
        if row.entry.fallback_tensors:
            lines.append(
                f"{label(row)}: {row.entry.fallback_tensors} tensors fell back to larger types, "
                "because their rows do not divide by 256"
            )
    return lines


def _slow_kernel(row: ReportRow, rows: Sequence[ReportRow]) -> str:
    """Measured where a fast variant of the same layers is in the report, expected otherwise."""
    fast = next(
        (
            other
            for other in rows
            if other.entry.quantization == FAST_TYPE and other.entry.pruned_layers == row.entry.pruned_layers
        ),
        None,
    )
    head = "no fast kernel on this processor"
    if fast is None:
        return (
            f"{head}; {FAST_TYPE} is expected to prefill {EXPECTED_PREFILL_GAIN:g} times faster: "
            f"`tidegate-edge quantize MODEL --to {FAST_TYPE}`"
        )
    gain = fast.figures.prefill_tokens_per_s / row.figures.prefill_tokens_per_s
    if gain < _WORTH_TELLING:
        return f"{head}, and yet {FAST_TYPE} is no faster here"
    cost = fast.perplexity / row.perplexity - 1
    return f"{head}; {FAST_TYPE} prefills {gain:.1f} times faster at {cost:+.0%} perplexity"


def as_json(row: ReportRow, source: ReportRow) -> dict[str, Any]:
    """One row with its figures, and its perplexity next to the source's."""
    entry = asdict(row.entry)
    return {
        "variant": label(row),
        "wanted": row.wanted,
        "path": str(row.path),
        "perplexity_to_source": row.perplexity / source.perplexity,
    } | entry


def plot(rows: Sequence[ReportRow], target: Path) -> None:
    """Writes a PNG: decode speed to the right, perplexity upwards (lower is better), area by file size."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise EngineUnavailable("--plot needs matplotlib: pip install 'tidegate-services[report]'") from None
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    largest = max(row.entry.bytes for row in rows)
    for row in rows:
        x, y = row.figures.decode_slots_tokens_per_s, row.perplexity
        color = "tab:orange" if not row.wanted else "tab:green" if row.entry.pruned_layers else "tab:blue"
        axes.scatter([x], [y], s=40 + 360 * row.entry.bytes / largest, color=color, alpha=0.6)
        axes.annotate(label(row), (x, y), xytext=(6, 6), textcoords="offset points", fontsize=8)
    if max(row.perplexity for row in rows) > 2 * min(row.perplexity for row in rows):
        axes.set_yscale("log")
    first = rows[0].figures
    axes.set_xlabel(f"decode, tokens/s at {first.slots} slots, {first.threads} thread(s)")
    axes.set_ylabel("perplexity (lower is better)")
    axes.set_title(f"{rows[0].entry.model} on {first.hardware_class}", fontsize=9)
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    figure.savefig(target, format="png")
