"""What was measured of a device is what its engine starts with; what a child measures is kept."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from llama_driver import Driver

from serving.engines.llama_cpp.settings import LlamaCppSettings
from serving.engines.llama_cpp.tuning.kept import KeptCurves
from serving.engines.llama_cpp.variants import curves
from serving.engines.llama_cpp.variants.curve import cores, threads_to_try
from serving.engines.llama_cpp.variants.curves import Bench, hardware, load, save


def measured(model_path: Path) -> Bench:
    """Really; the figures of two threads are made up, because two threads on a busy machine take minutes."""
    one = curves.measure_curves(
        model_path, threads=[1], sizes=[1], now_s=time.time() - 100.0, progress=lambda line: None
    )
    (curve,) = one.curves
    others = [replace(curve, threads=count) for count in threads_to_try(cores())[1:]]
    faster = tuple((size, 3 * rate) for size, rate in curve.decode)
    return replace(one, curves=(curve, *others[:-1], replace(others[-1], decode=faster)))


@pytest.mark.asyncio
@pytest.mark.skipif(cores() < 2, reason="one core leaves no choice")
async def test_an_engine_starts_with_what_was_measured(model_path: Path, tmp_path: Path) -> None:
    bench = measured(model_path)
    save(bench, tmp_path)
    settings = LlamaCppSettings(
        model_path=model_path, model="m", threads=0, slots=1, context_tokens=512, bench_folder=tmp_path
    )
    driver = Driver(settings)
    info = await driver.start()
    await driver.stop()
    best = cores()
    assert driver.engine.threads == best
    assert info.hardware_class.endswith(f"/{best}t")
    assert 100_000.0 <= info.speeds.age_ms < 160_000.0
    (decode,) = info.speeds.decode
    assert decode == pytest.approx(bench.curves[-1].decode[0])
    assert info.build == bench.build


def test_what_a_child_measured_is_kept_and_given_to_the_next(tmp_path: Path) -> None:
    digest = "sha256:" + "ab" * 32
    found = {"threads": 2, "prefill": [[16, 300.0]], "decode": [[1, 50.0]]}
    frame = {"t": "tuned", "build": "b", "curves": [found], "threads": 2}
    kept = KeptCurves(tmp_path)
    assert kept.for_child() is None
    kept.take(frame, Path("m.gguf"), digest)
    later = KeptCurves(tmp_path)
    later.read(digest)
    given = later.for_child()
    assert given is not None
    assert (given["build"], given["curves"][0]["decode"]) == ("b", ((1, 50.0),))
    assert given["measured_s"] == pytest.approx(time.time(), abs=60.0)
    bench = load(tmp_path, digest)
    assert bench is not None
    assert bench.hardware == hardware()
    save(Bench(bench.model, digest, "another", bench.measured_on, bench.curves, "b", 1.0), tmp_path)
    later.read(digest)
    assert later.for_child() is None
    with pytest.raises(KeyError):
        kept.take({"t": "tuned"}, Path("m.gguf"), digest)


def test_a_folder_that_cannot_be_written_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    kept = KeptCurves(tmp_path / "file" / "folder")
    kept.take({"build": "b", "curves": [], "threads": 1}, Path("m.gguf"), "sha256:ab")
    assert "cannot be kept" in caplog.text
