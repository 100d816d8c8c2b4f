"""Servers that LlamaServerEngine can manage in tests: a device daemon on the oracle, and llama-server itself.

The daemon is a real OpenAI-compatible server that starts within a second and needs no model.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from llama_cpp_server import smollm2_gguf

from serving.engines.llama_cpp.bundled import cache_dir
from serving.engines.llama_server import LlamaServerSettings
from tidegate.routing.domain import Speeds

CONTEXT_TOKENS = 1024
_CONFIG = """
state_dir = "{folder}/state"

[engine]
kind = "oracle"
slots = 2
queue_limit = 3
context_tokens = {context}

[engine.oracle]
prefill_tokens_per_s = 20000.0
decode = [[1, 250.0], [4, 200.0]]
"""


def built_llama_server() -> Path | None:
    """What `make bench-engine` built, if it ever ran here."""
    found = sorted((cache_dir() / "llama-tools").glob("*/build/bin/llama-server"))
    return found[-1] if found else None


def settings(folder: Path, **changes: Any) -> LlamaServerSettings:
    """A daemon on the oracle; its files lie in `folder`."""
    config = folder / "daemon.toml"
    config.write_text(_CONFIG.format(folder=folder, context=CONTEXT_TOKENS))
    daemon = (sys.executable, str(Path(__file__).with_name("managed_daemon.py")), str(config), "{socket}")
    values: dict[str, Any] = {
        "model_path": smollm2_gguf(),
        "model": "smollm2-135m",
        "command": daemon,
        "slots": 2,
        "queue_limit": 3,
        "context_tokens": CONTEXT_TOKENS,
        "speeds": Speeds(2000.0, ((1, 200.0),)),
        "start_timeout_s": 30.0,
    }
    return LlamaServerSettings(**(values | changes))
