"""A file whose type has no fast kernel here: told when it is loaded, mended only where that is configured."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from serving.engines.llama_cpp.bundled import MODEL, bundled_model
from serving.engines.llama_cpp.catalog import CatalogEntry, Figures, read_entry
from serving.engines.llama_cpp.engine import LlamaCppEngine
from serving.engines.llama_cpp.gguf_check import read_gguf
from serving.engines.llama_cpp.identity import describe
from serving.engines.llama_cpp.settings import LlamaCppSettings
from serving.engines.llama_cpp.slow_kernel import lacks_fast_kernel
from tidegate.routing.domain import Speeds
from tidegate.wire.common import decode_variant, encode_variant

NOTHING_REPACKED = {"repacked_bytes": 0}


def settings(**changes: object) -> LlamaCppSettings:
    values = {"model_path": bundled_model(), "model": MODEL, "slots": 1, "context_tokens": 256}
    return LlamaCppSettings.model_validate(values | changes)


def test_only_slow_types_that_stayed_as_they_are_lack_a_kernel() -> None:
    assert lacks_fast_kernel("Q4_1", 0, NOTHING_REPACKED)
    assert not lacks_fast_kernel("Q4_1", 0, {"repacked_bytes": 5})
    assert not lacks_fast_kernel("Q8_0", 0, NOTHING_REPACKED)
    assert not lacks_fast_kernel("Q4_1", -1, NOTHING_REPACKED)


@pytest.mark.parametrize("requantize", [False, True])
async def test_it_is_served_as_it_is_or_as_a_faster_copy(
    model_path: Path, caplog: pytest.LogCaptureFixture, requantize: bool
) -> None:
    engine = LlamaCppEngine(settings(requantize_slow=requantize))
    engine._speeds = Speeds(500.0, ((1, 60.0),))
    with caplog.at_level(logging.WARNING):
        info = await engine.start()
    await engine.stop(0.0)
    assert "Q4_1 has no fast kernel on this processor: Q4_0 is expected to prefill 2.7 times" in caplog.text
    copy = read_entry(model_path)
    assert copy is not None
    (variant,) = info.variants
    assert variant.quantization == ("Q4_0" if requantize else "Q4_1")
    assert (variant.digest == copy.digest) is requantize
    assert (variant.perplexity == copy.perplexity) is requantize


def test_measured_quality_is_announced() -> None:
    figures = Figures("cpu/1t", "2026-01-02", 1, 4, 512, 90.0, 1, 1, 0, 700.0, 150.0, 280.0, 0.7, 60)
    entry = CatalogEntry(MODEL, "Q4_0", "sha256:1", 9, 1, 8192, 30.5, "", "", (), 0, figures)
    ready = {"context_tokens": 256, "template": "", "build": "b", "threads": 1}
    header = read_gguf(bundled_model()).header

    def announced(known: CatalogEntry | None) -> tuple[float | None, float | None]:
        info = describe(settings(), header, known, "sha256:1", ready, Speeds(1.0, ()))
        variant = decode_variant(encode_variant(info.variants[0]))
        return variant.perplexity, variant.accuracy

    assert announced(entry) == (30.5, 0.7)
    assert announced(dataclasses.replace(entry, figures=None)) == (30.5, None)
    assert announced(None) == (None, None)
