"""Pages of the model's file are given back, and can be read again."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

import pytest

from serving.engines.llama_cpp.mapped import release_model_pages

SIZE = 4 * 2**20


def resident_kib(path: Path) -> int:
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")
def test_pages_of_a_model_are_given_back_and_come_again(tmp_path: Path) -> None:
    model, other = tmp_path / "a b.gguf", tmp_path / "other.bin"
    for path in (model, other):
        path.write_bytes(os.urandom(SIZE))
    with model.open("rb") as file, other.open("rb") as beside:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        kept = mmap.mmap(beside.fileno(), 0, prot=mmap.PROT_READ)
        before = bytes(mapped)
        assert bytes(kept)
        assert resident_kib(model) == resident_kib(other) == SIZE // 1024
        assert release_model_pages() >= SIZE
        assert (resident_kib(model), resident_kib(other)) == (0, SIZE // 1024)
        assert bytes(mapped) == before
        mapped.close()
        kept.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")
def test_what_could_be_written_to_is_left_alone(tmp_path: Path) -> None:
    """Giving back private pages that were written to would lose what was written."""
    page = mmap.PAGESIZE
    written = mmap.mmap(-1, page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    written[:4] = b"kept"
    start = ctypes.addressof(ctypes.c_char.from_buffer(written))
    maps = tmp_path / "maps"

    def release(rights: str, path: str) -> int:
        maps.write_text(f"{start:x}-{start + page:x} {rights} 00000000 08:01 12 {path}\n")
        return release_model_pages(maps)

    for rights, path in (("rw-p", "/models/m.gguf"), ("r--p", "/lib/libc.so"), ("rw-p", "")):
        assert release(rights, path) == 0
        assert written[:4] == b"kept"
    # The control: taken for a model's, the very pages are lost.
    assert release("r--p", "/models/m.gguf") == page
    assert written[:4] != b"kept"
    assert release_model_pages(tmp_path / "none") == 0
