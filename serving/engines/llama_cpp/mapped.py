"""Gives back the pages of the model's file that were only needed to load it.

llama.cpp maps the file, and copies what it can compute faster with in another order. The pages that it copied
from stay in this process's memory, though nothing reads them again: with Q4_0 most of the file. Those that
are still used come back from the page cache when they are touched.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

_MADV_DONTNEED = 4
_SUFFIX = ".gguf"


def release_model_pages(maps: Path = Path("/proc/self/maps")) -> int:
    """The bytes of address space that were given back; 0 where the system has no such thing."""
    try:
        found = list(_mappings(maps.read_text(encoding="utf-8", errors="replace")))
        madvise = ctypes.CDLL(None, use_errno=True).madvise
    except (OSError, AttributeError):
        return 0
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return sum(size for start, size in found if madvise(start, size, _MADV_DONTNEED) == 0)


def _mappings(text: str) -> Iterator[tuple[int, int]]:
    """(start, size) of what is mapped from model files and cannot have been written to."""
    for line in text.splitlines():
        addresses, rights, *_, path = line.split(maxsplit=5) if line.count(" ") >= 5 else ("", "", "")
        if path.endswith(_SUFFIX) and "w" not in rights and "x" not in rights:
            start, _, end = addresses.partition("-")
            yield int(start, 16), int(end, 16) - int(start, 16)
