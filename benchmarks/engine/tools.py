"""llama.cpp's own programs, built from the very source that llama-cpp-python brings along.

The source archive is the one whose hash stands in requirements/; everything lies outside the repository, in
$TIDEGATE_CACHE or ~/.cache/tidegate, and is built once per release, CMAKE_ARGS and compiler flags.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import CannotMeasure
from serving.engines.llama_cpp.bundled import cache_dir
from tools.envsetup.engine_wheel import compiler_flags

TARGETS = ("llama-server", "llama-bench", "llama-batched-bench")
_LOCK_FILE = Path(__file__).resolve().parents[2] / "requirements" / "runtime.txt"
_PACKAGE = "llama-cpp-python"
_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAVA_BUILD=OFF",
    "-DLLAMA_BUILD_TOOLS=ON",
    "-DLLAMA_BUILD_SERVER=ON",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
)


def llama_tools() -> Path:
    """The folder with the programs of TARGETS, building them if needed. Raises CannotMeasure."""
    requirement = _locked_requirement()
    version = requirement.split("==")[1].split()[0]
    more = os.environ.get("CMAKE_ARGS", "").split()
    settings = " ".join((*more, *compiler_flags().values()))
    suffix = f"-{hashlib.sha256(settings.encode()).hexdigest()[:8]}" if settings else ""
    home = cache_dir() / "llama-tools" / f"llama-cpp-python-{version}{suffix}"
    programs = home / "build" / "bin"
    if all((programs / name).exists() for name in TARGETS):
        return programs
    for program in ("cmake", "c++"):
        if shutil.which(program) is None:
            raise CannotMeasure(f"{program} is missing: apt-get install cmake g++")
    home.mkdir(parents=True, exist_ok=True)
    began_s = time.monotonic()
    print(f"bench-engine: building {', '.join(TARGETS)} once, about five minutes ({home})", flush=True)
    source = _source(home, requirement)
    _build(home, source, more)
    print(f"bench-engine: built in {time.monotonic() - began_s:.0f} s", flush=True)
    return programs


def _locked_requirement() -> str:
    """`llama-cpp-python==VERSION --hash=...` as the lock file says."""
    found = re.search(rf"^{_PACKAGE}==\S+(?: \\\n +--hash=\S+)+", _LOCK_FILE.read_text(), re.MULTILINE)
    if found is None:
        raise CannotMeasure(f"{_LOCK_FILE.name} does not name {_PACKAGE} with its hash")
    return found.group(0).replace("\\\n", " ")


def _source(home: Path, requirement: str) -> Path:
    """The vendored llama.cpp, unpacked."""
    source = home / "source"
    if not (source / "CMakeLists.txt").exists():
        wanted = home / "wanted.txt"
        wanted.write_text(requirement + "\n")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
        command += ["--no-binary", _PACKAGE, "--dest", str(home), "-r", str(wanted)]
        _run(command, home / "download.log")
        archive = next(home.glob("llama_cpp_python-*.tar.gz"))
        unpacked = home / "unpacked"
        shutil.unpack_archive(archive, unpacked)
        next(unpacked.glob("*/vendor/llama.cpp")).rename(source)
        shutil.rmtree(unpacked)
        archive.unlink()
    return source


def _build(home: Path, source: Path, more: Sequence[str]) -> None:
    log = home / "build.log"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    _run(["cmake", *generator, "-S", str(source), "-B", str(home / "build"), *_OPTIONS, *more], log)
    jobs = str(os.cpu_count() or 1)
    _run(["cmake", "--build", str(home / "build"), "-j", jobs, "--target", *TARGETS], log)


def _run(command: list[str], log: Path) -> None:
    with log.open("a") as output:
        status = subprocess.run(
            ["nice", "-n", "10", *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
            env={**os.environ, **compiler_flags()},
        ).returncode
    if status:
        raise CannotMeasure(f"`{' '.join(command[:4])} ...` failed with {status}: see {log}")
