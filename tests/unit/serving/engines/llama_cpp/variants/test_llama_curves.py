"""Speed curves: kept, read again, compared, shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.engines.llama_cpp.variants import curves
from serving.engines.llama_cpp.variants.curve import Curve
from serving.engines.llama_cpp.variants.curves import Bench, fastest_threads, lines, load, save

ONE = Curve(1, ((16, 300.0), (64, 400.0)), ((1, 90.0), (4, 30.0)))
TWO = Curve(2, ((16, 500.0), (64, 700.0)), ((1, 80.0), (4, 50.0)))
BENCH = Bench("m.gguf", "sha256:" + "ab" * 32, "cpu", "2026-01-02", (ONE, TWO))


def test_what_was_measured_is_read_again(tmp_path: Path) -> None:
    assert load(tmp_path, BENCH.digest) is None
    path = save(BENCH, tmp_path / "bench")
    assert load(path.parent, BENCH.digest) == BENCH
    assert load(path.parent, "sha256:" + "cd" * 32) is None
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"curves": [{}]}', '{"curves": 3}'])
def test_damaged_curves_are_no_curves(tmp_path: Path, text: str) -> None:
    save(BENCH, tmp_path).write_text(text)
    assert load(tmp_path, BENCH.digest) is None


def test_the_best_number_of_threads_depends_on_the_load() -> None:
    assert [fastest_threads(BENCH, size) for size in (1, 2, 3, 4, 99)] == [1, 1, 2, 2, 2]


def test_the_curve_is_shown_with_bars() -> None:
    text = lines(BENCH)
    assert text[0] == "m.gguf on cpu, 2026-01-02"
    assert "1 thread, tokens/s" in text
    assert "2 threads, tokens/s" in text
    full, half = (next(line for line in text if start in line) for start in ("steps of 64", "decode, 4 at"))
    assert full.endswith(" " + "#" * 30)
    assert "120.0" in half
    assert half.endswith(" " + "#" * 9)


def test_a_model_is_swept(model_path: Path) -> None:
    found = curves.measure_curves(
        model_path, threads=[1], sizes=[2, 1], now_s=1_767_312_000.0, progress=lambda line: None
    )
    (curve,) = found.curves
    assert [size for size, _ in curve.decode] == [1, 2]
    assert curve.prefill[0][0] == 16
    assert all(rate > 0.0 for _, rate in (*curve.prefill, *curve.decode))
    assert curve.prefill[-1][1] > curve.decode[0][1]
    assert found.hardware == curves.hardware()
    assert found.measured_on.startswith("2026-01-0")
    assert found.build


def test_curves_of_a_gpu_name_it(tmp_path: Path) -> None:
    found = {"curves": [], "build": "b", "gpus": ["NVIDIA L4"]}
    bench = curves.bench_of(tmp_path / "m.gguf", "sha256:1", found, 1_767_312_000.0)
    assert bench.hardware == f"{curves.hardware()}, NVIDIA L4"
