"""What this machine must have before the set-up starts; each miss is one line that says what to do."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

CMAKE_MINIMUM = (3, 21)
DISK_NEEDED_GB = 3.0
CACHE_DISK_NEEDED_GB = 1.0
MEMORY_NEEDED_GB = 2.0
_GB = 1e9
_PROBE_SOURCE = '#include <cstdio>\n#include <thread>\nint main() { std::puts("ok"); return 0; }\n'


class Unmet(Exception):
    """Something is missing on this machine."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = list(lines)
        super().__init__("; ".join(self.lines))


def check_machine(root: Path, cache: Path, *, builds_engine: bool) -> None:
    """Raises Unmet with one line for each thing that is missing."""
    lines = [*_python(), *_writable(root, cache), *_disk(root, cache), *_memory()]
    if builds_engine:
        lines += [*_compilers(), *_cmake(), *_make()]
    if lines:
        raise Unmet(lines)


def check_extensions_build(include: Path) -> None:
    """Raises Unmet with one line for each thing that building an extension with these headers lacks."""
    lines = [*_compilers(), *_headers(include)]
    if lines:
        raise Unmet(lines)


def _headers(include: Path) -> Iterator[str]:
    if not (include / "Python.h").is_file():
        yield f"Python's headers are missing in {include}: apt-get install {include.name}-dev"


def _python() -> Iterator[str]:
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        yield "Python's venv module is missing: apt-get install python3-venv"


def _writable(root: Path, cache: Path) -> Iterator[str]:
    for folder, remedy in ((root, "own the checkout"), (cache, "set TIDEGATE_CACHE to a folder you own")):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as reason:
            yield f"cannot write in {folder} ({reason.strerror}): {remedy}"


def _disk(root: Path, cache: Path) -> Iterator[str]:
    temporary = Path(tempfile.gettempdir())
    places = (
        (root, DISK_NEEDED_GB, "free some, or clone elsewhere"),
        (cache, CACHE_DISK_NEEDED_GB, "free some, or set TIDEGATE_CACHE to another disk"),
        (temporary, CACHE_DISK_NEEDED_GB, "free some, or set TMPDIR to another disk"),
    )
    for folder, needed_gb, remedy in places:
        while not folder.exists():
            folder = folder.parent
        free_gb = shutil.disk_usage(folder).free / _GB
        if free_gb < needed_gb:
            yield f"{free_gb:.1f} GB free in {folder}, {needed_gb:.0f} GB needed: {remedy}"


def _memory() -> Iterator[str]:
    available_gb = available_memory_gb()
    if available_gb is not None and available_gb < MEMORY_NEEDED_GB:
        yield (
            f"{available_gb:.1f} GB of memory available, {MEMORY_NEEDED_GB:.0f} GB needed: "
            "close some programs, add swap, or raise the container's limit"
        )


def available_memory_gb() -> float | None:
    """Memory that can be used now (swap included), within the container's limit; None where unknown."""
    try:
        facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        kilobytes = sum(int(facts[name].split()[0]) for name in ("MemAvailable", "SwapFree"))
    except (OSError, KeyError, ValueError):
        return None
    available_gb = kilobytes * 1024 / _GB
    try:
        folder = Path("/sys/fs/cgroup")
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        reclaimable = re.search(r"^inactive_file (\d+)$", (folder / "memory.stat").read_text(), re.M)
    except (OSError, ValueError):
        return available_gb  # no limit ("max"), or no control group of ours
    cached = int(reclaimable[1]) if reclaimable else 0
    return min(available_gb, (limit - used + cached) / _GB)


def _compilers() -> Iterator[str]:
    for variable, default in (("CC", "gcc"), ("CXX", "g++")):
        program = os.environ.get(variable, default)
        if shutil.which(program.split()[0]) is None:
            yield f"no compiler {program}: apt-get install gcc g++ (or set {variable})"
            return
    compiler = os.environ.get("CXX", "g++").split()
    with tempfile.TemporaryDirectory() as folder:
        probe = subprocess.run(
            [*compiler, "-x", "c++", "-", "-pthread", "-o", f"{folder}/probe"],
            input=_PROBE_SOURCE,
            text=True,
            capture_output=True,
        )
    if probe.returncode != 0:
        yield f"{compiler[0]} cannot build a small program: apt-get install g++ libc6-dev"


def _cmake() -> Iterator[str]:
    wanted = ".".join(map(str, CMAKE_MINIMUM))
    if shutil.which("cmake") is None:
        yield f"cmake (at least {wanted}) is missing: apt-get install cmake"
        return
    output = subprocess.run(["cmake", "--version"], text=True, capture_output=True).stdout
    found = re.search(r"version (\d+)\.(\d+)", output)
    if found is None or (int(found[1]), int(found[2])) < CMAKE_MINIMUM:
        yield f"cmake is too old ({found[0] if found else 'unknown'}), at least {wanted} is needed: update it"


def _make() -> Iterator[str]:
    if shutil.which("make") is None and shutil.which("ninja") is None:
        yield "make is missing: apt-get install make"
