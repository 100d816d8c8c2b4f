"""llama-cpp-python's low-level module, without the package around it.

Importing the package also loads its high-level API: chat formats, a disk cache, multiprocessing. Nothing here
uses them, and every engine's process would carry 6 MB of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # What is imported by name below, for those who check who imports what.
    import llama_cpp  # noqa: F401

_PACKAGE = "llama_cpp"


def load_binding() -> tuple[Any, str]:
    """(module, version of the package). Raises ImportError."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None or spec.submodule_search_locations is None:
        raise ImportError("llama-cpp-python is not installed")
    found = re.search(
        r'^__version__ = "([^"]+)"', Path(spec.origin).read_text(encoding="utf-8"), re.MULTILINE
    )
    module = _load_within(spec.submodule_search_locations)
    return module, found[1] if found else "unknown"


def _load_within(folders: list[str]) -> types.ModuleType:
    """An empty package stands in meanwhile; whoever imports the package later gets all of it."""
    name = f"{_PACKAGE}.{_PACKAGE}"
    if _PACKAGE in sys.modules:
        return importlib.import_module(name)
    package = types.ModuleType(_PACKAGE)
    package.__path__ = folders
    sys.modules[_PACKAGE] = package
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules[_PACKAGE]
