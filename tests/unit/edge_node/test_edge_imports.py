"""What the daemon must not carry in memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "llama_cpp",
    "numpy",
    "onnxruntime",
    "redis",
    "jinja2",
    "grpc",
    "prometheus_client",
    "pydantic_settings",
)


def loaded(statement: str) -> set[str]:
    """Top-level modules loaded after `statement` in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(told.stdout.split())


@pytest.mark.parametrize(
    "statement", ["import edge_node.__main__", "import edge_node.app, serving.engines.llama_cpp.engine"]
)
def test_nothing_heavy_is_imported(statement: str) -> None:
    modules = loaded(statement)
    assert "aiohttp" in modules
    assert not modules & set(HEAVY)
