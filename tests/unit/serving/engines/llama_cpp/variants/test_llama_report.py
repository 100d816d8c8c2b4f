"""The report: what is measured on a real model, what is kept, and how it is shown."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp.bundled import MODEL, bundled_model, default_models_dir
from serving.engines.llama_cpp.catalog import CatalogEntry, Figures, load_entry, read_entry
from serving.engines.llama_cpp.prepare import prepare
from serving.engines.llama_cpp.variants import plan, report, show
from serving.engines.llama_cpp.variants.memory import AvailableMemory
from serving.engines.llama_cpp.variants.report import ReportRow, ReportSettings, Wanted, measure_all

SHORT_TEXT = " ".join(["The tide comes in, the tide goes out, and the gate keeps the harbour calm."] * 12)


def row(
    quantization: str,
    *,
    prefill: float = 100.0,
    perplexity: float = 30.0,
    layers: tuple[int, ...] = (),
    repacked: int = 0,
    is_source: bool = False,
    fallback: int = 0,
) -> ReportRow:
    figures = Figures(
        "cpu/1t", "2026-01-02", 1, 4, 512, 90.0, 2 << 20, 1 << 20, repacked, prefill, 50.0, 80.0, 0.75, 60
    )
    entry = CatalogEntry(
        "m", quantization, "sha256:0", 98_000_000, 1, 8192, perplexity, "", "", layers, fallback, figures
    )
    wanted = "" if is_source else Wanted(quantization, len(layers)).name
    return ReportRow(Path("m.gguf"), wanted, entry, figures)


@pytest.mark.parametrize(
    ("text", "wanted", "name"),
    [
        ("q8_0", Wanted("Q8_0"), "Q8_0"),
        ("pruned:2", Wanted("Q4_0", 2), "pruned:2"),
        (" Pruned:1:q8_0", Wanted("Q8_0", 1), "pruned:1:Q8_0"),
    ],
)
def test_a_variant_is_named_in_one_word(text: str, wanted: Wanted, name: str) -> None:
    assert Wanted.parse(text) == wanted
    assert wanted.name == name
    assert Wanted.parse(name) == wanted


@pytest.mark.parametrize("text", ["pruned:", "pruned:x", "pruned:0"])
def test_a_wrong_word_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="pruned:COUNT"):
        Wanted.parse(text)


def test_a_variant_without_a_fast_kernel_is_told_with_the_measured_gain() -> None:
    slow = row("Q4_1", prefill=100.0, is_source=True)
    fast = row("Q4_0", prefill=270.0, perplexity=33.0, repacked=5)
    (line,) = show.advice([slow, fast])
    assert line.startswith("source (Q4_1): no fast kernel on this processor")
    assert "Q4_0 prefills 2.7 times faster at +10% perplexity" in line
    (expected,) = show.advice([slow])
    assert "expected to prefill 2.7 times faster" in expected
    (same,) = show.advice([slow, row("Q4_0", prefill=110.0)])
    assert "no faster here" in same
    assert show.advice([row("Q4_1", repacked=9)]) == []
    assert "fell back" in show.advice([row("Q4_K_M", fallback=180)])[0]


def test_the_table_puts_every_variant_next_to_its_source() -> None:
    rows = [row("Q8_0", is_source=True), row("Q4_0", perplexity=33.0), row("Q4_0", layers=(4, 26))]
    lines = show.table(rows).splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "variant",
        "source (Q8_0)",
        "Q4_0",
        "Q4_0 without 4,26",
    ]
    assert lines[2].split()[-2:] == ["+10.0%", "75%"]
    assert "decode 4" in lines[0]


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    rows = [row("Q8_0", is_source=True), row("Q4_0", perplexity=90.0), row("Q4_0", layers=(4,))]
    show.plot(rows, tmp_path / "plot.png")
    data = (tmp_path / "plot.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 5000


def test_a_missing_plot_library_is_one_clear_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(EngineUnavailable, match=r"pip install 'tidegate-services\[report\]'"):
        show.plot([row("Q8_0", is_source=True)], tmp_path / "plot.png")
    assert not list(tmp_path.iterdir())


def test_figures_are_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text"
    text.write_text(SHORT_TEXT)
    monkeypatch.setattr(report, "CALIBRATION_TEXT", text)
    (made,) = prepare(bundled_model(), ["Q4_0"], default_models_dir(), model=MODEL)
    settings = ReportSettings(folder=tmp_path / "models", today="2026-01-02", slots=2, context_tokens=128)
    lines: list[str] = []
    (found,) = measure_all(made.path, [], settings, lines.append)
    assert read_entry(made.path) == made.entry
    f = found.figures
    assert (f.measured_on, f.slots, f.threads, f.accuracy_items) == ("2026-01-02", 2, 1, 60)
    assert 0.6 < f.accuracy < 1.0
    assert f.rss_bytes >= f.pss_bytes > made.entry.bytes / 4
    assert f.prefill_tokens_per_s > f.decode_1_tokens_per_s > 0.0
    assert f.load_ms > 0.0
    assert 1.0 < found.perplexity < 60.0
    told = len(lines)
    tomorrow = dataclasses.replace(settings, today="2026-01-03")
    assert measure_all(made.path, [], tomorrow, lines.append) == [found]
    assert len(lines) == told
    (notes,) = settings.folder.glob("*.json")
    kept = load_entry(notes.with_suffix(""))
    assert kept is not None
    assert kept.figures == f


def test_what_was_made_before_is_found_again() -> None:
    prepare(bundled_model(), ["Q4_0"], default_models_dir(), model=MODEL)
    assert Wanted("Q4_0") in report.existing_variants(bundled_model(), default_models_dir())


def test_what_has_no_room_is_left_out_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "available_memory", lambda: AvailableMemory(1_000_000, "a small box"))
    lines: list[str] = []
    settings = ReportSettings(folder=tmp_path, today="2026-01-02")
    with pytest.raises(EngineUnavailable, match="no variant fits"):
        measure_all(bundled_model(), [Wanted("Q4_1")], settings, lines.append)
    (line,) = lines
    assert "left out" in line
    assert "does not fit: 4 slots of 512 tokens" in line
