"""The engine contract on the real engine and a real model."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from engine_contract import EngineContract

from serving.engines.base import Engine
from serving.engines.llama_cpp.bundled import MODEL, bundled_model, default_models_dir
from serving.engines.llama_cpp.engine import LlamaCppEngine
from serving.engines.llama_cpp.prepare import prepare
from serving.engines.llama_cpp.settings import LlamaCppSettings
from tidegate.routing.domain import Speeds


@cache
def model_path() -> Path:
    (variant,) = prepare(bundled_model(), ["Q4_0"], default_models_dir(), model=MODEL)
    return variant.path


class TestLlamaCppEngine(EngineContract):
    async def make_engine(self) -> Engine:
        settings = LlamaCppSettings(
            model_path=model_path(), model=MODEL, slots=2, queue_limit=3, context_tokens=1024
        )
        engine = LlamaCppEngine(settings)
        # As after a restart: each start of a test would measure the same machine again.
        engine._speeds = Speeds(500.0, ((1, 60.0), (2, 40.0)))
        return engine
