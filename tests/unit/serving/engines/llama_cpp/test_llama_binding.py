"""The engine's process carries the low-level binding and nothing that only others need."""

from __future__ import annotations

import subprocess
import sys

UNUSED = ("llama_cpp.llama", "diskcache", "multiprocessing", "pydantic", "asyncio", "ssl", "email")


def test_the_engine_process_loads_no_more_than_it_uses() -> None:
    code = (
        # What measures these tests loads modules of its own before.
        "import sys; before = set(sys.modules); import serving.engines.llama_cpp.child;"
        "from serving.engines.llama_cpp.native import build_id;"
        f"print([name for name in {UNUSED!r} if name in sys.modules.keys() - before], build_id())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, build = done.stdout.rsplit(" ", 1)
    assert loaded == "[]"
    assert build.startswith("llama-cpp-python-0.")


def test_who_imports_the_package_later_gets_all_of_it() -> None:
    code = (
        "from serving.engines.llama_cpp.binding import load_binding;"
        "low, version = load_binding();"
        "import llama_cpp;"
        "assert llama_cpp.Llama and llama_cpp.__version__ == version;"
        "assert llama_cpp.llama_cpp is low"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
