"""Variants that need more than a 4-bit type: a 16-bit one, fallen-back ones, and ones with fewer layers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp import prepare as prepare_module
from serving.engines.llama_cpp.bundled import MODEL, bundled_model, default_models_dir
from serving.engines.llama_cpp.catalog import Figures, load_entry, write_entry
from serving.engines.llama_cpp.gguf_check import fallback_tensors, read_gguf
from serving.engines.llama_cpp.native_task import run_task
from serving.engines.llama_cpp.prepare import prepare

CHILD = "serving.engines.llama_cpp.prepare_child"


def quantize(target: Path, quantization: str, source: Path, layers: tuple[int, ...] = ()) -> list[str]:
    """Without measuring; the lines of progress."""
    lines: list[str] = []
    task = {"task": "quantize", "source": str(source), "target": str(target), "threads": 1}
    run_task(CHILD, task | {"quantization": quantization, "layers": layers}, "making", lines.append)
    return lines


def test_sixteen_bits_and_back(tmp_path: Path) -> None:
    lines = quantize(tmp_path / "f16.gguf", "F16", bundled_model())
    assert lines[-1] == "making: 100%"
    assert 5 <= len(lines) <= 11
    f16 = read_gguf(tmp_path / "f16.gguf")
    assert f16.header.quantization == "F16"
    assert {t.type for t in f16.tensors} == {"F16", "F32"}
    quantize(tmp_path / "k.gguf", "Q4_K_M", tmp_path / "f16.gguf")
    k = read_gguf(tmp_path / "k.gguf")
    fell = fallback_tensors(k, "Q4_K_M")
    assert len(fell) == 181
    assert {t.shape[0] % 256 == 0 for t in fell} == {False}
    assert {t.type for t in k.tensors if t.shape[0] % 256 == 0} >= {"Q4_K", "Q6_K"}


def test_pruned_layers_are_in_name_and_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text"
    text.write_text(prepare_module.CALIBRATION_TEXT.read_text()[:1500])
    monkeypatch.setattr(prepare_module, "CALIBRATION_TEXT", text)
    (made,) = prepare(bundled_model(), ["Q4_0"], tmp_path, model=MODEL, layers=(26, 4))
    assert made.path.name == "SmolLM2-135M-Instruct.pruned-4,26.Q4_0.gguf"
    assert made.entry.pruned_layers == (4, 26)
    assert load_entry(made.path) == made.entry
    assert read_gguf(made.path).number("block_count") == 28
    assert made.entry.perplexity is not None
    assert 10.0 < made.entry.perplexity < 200.0


def test_what_does_not_load_is_not_kept(tmp_path: Path) -> None:
    """A model without any layer."""
    with pytest.raises(EngineUnavailable, match=r"quantizing to Q4_0 (failed|crashed)"):
        prepare(bundled_model(), ["Q4_0"], tmp_path, layers=tuple(range(30)))
    assert not list(tmp_path.glob("*.gguf*"))


def test_figures_live_in_the_entry(tmp_path: Path) -> None:
    (made,) = prepare(bundled_model(), ["Q4_0"], default_models_dir(), model=MODEL)
    path = tmp_path / "m.gguf"
    figures = Figures("cpu/1t", "2026-01-02", 1, 4, 512, 90.0, 1, 1, 0, 700.0, 150.0, 280.0, 0.7, 60)
    entry = dataclasses.replace(made.entry, figures=figures)
    write_entry(path, entry)
    assert load_entry(path) == entry


def test_a_source_is_never_written_over(tmp_path: Path) -> None:
    source = tmp_path / "m.Q4_1.gguf"
    source.symlink_to(bundled_model())
    before = bundled_model().stat().st_mtime_ns
    with pytest.raises(EngineUnavailable, match="is the source itself"):
        prepare(source, ["Q4_1"], tmp_path)
    assert bundled_model().stat().st_mtime_ns == before
