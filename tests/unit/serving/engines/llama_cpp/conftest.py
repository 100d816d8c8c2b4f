"""A prepared real model, and one engine on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from llama_driver import Driver

from serving.engines.llama_cpp.bundled import MODEL, bundled_model, default_models_dir
from serving.engines.llama_cpp.prepare import prepare
from serving.engines.llama_cpp.settings import LlamaCppSettings


@pytest.fixture(scope="session")
def model_path() -> Path:
    return prepare(bundled_model(), ["Q4_0"], default_models_dir(), model=MODEL)[0].path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(model_path: Path) -> AsyncIterator[Driver]:
    """One engine for all tests of a module that leave it healthy."""
    driver = Driver(
        LlamaCppSettings(
            model_path=model_path, model=MODEL, slots=3, queue_limit=3, context_tokens=512, grammars=True
        )
    )
    await driver.start()
    yield driver
    await driver.stop()
