"""Builds the llama-cpp-python wheel once per machine and keeps it, because that takes minutes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import locks, preflight, progress

DEFAULT_CMAKE_ARGS = "-DLLAVA_BUILD=OFF"
# llama.cpp's AMX code crashes (SIGILL at its first tile instruction) when built by a gcc whose
# _tile_loadconfig names only the first 8 of the 64 bytes it reads, as Debian 12's does: the stores to the
# others are optimized away. The code is guarded by this macro; without it AVX-512 does the work. Given in the
# environment, so that -DCMAKE_CXX_FLAGS=... in CMAKE_ARGS wins.
WITHOUT_AMX = "-U__AMX_INT8__"
_MEMORY_PER_JOB_GB = 1.0


def cache_folder() -> Path:
    """Where built wheels are kept: TIDEGATE_CACHE, else the user's cache folder."""
    if named := os.environ.get("TIDEGATE_CACHE"):
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "tidegate"


def cmake_args() -> str:
    """The caller's CMAKE_ARGS (say -DGGML_CUDA=on) come after ours, so that they win."""
    return f"{DEFAULT_CMAKE_ARGS} {os.environ.get('CMAKE_ARGS', '')}".strip()


def compiler_flags() -> dict[str, str]:
    """CFLAGS and CXXFLAGS of the build: the caller's, and what this machine's CPU needs besides."""
    if "amx_int8" not in _cpu_flags().split():
        return {}
    return {name: f"{os.environ.get(name, '')} {WITHOUT_AMX}".strip() for name in ("CFLAGS", "CXXFLAGS")}


def slot(engine_block: str) -> Path:
    """The folder of the one wheel that fits this lock, these options and this machine.

    By default llama.cpp is compiled for the CPU at hand, so the CPU's flags are part of the name: a home
    folder shared by unlike machines must not hand one machine's instructions to another.
    """
    settings = (cmake_args(), *compiler_flags().values())
    facts = "\n".join((engine_block, *settings, *platform.libc_ver(), _cpu_flags()))
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}-{platform.machine()}"
    named = f"{locks.ENGINE}-{locks.version_of(engine_block)}-{tag}-{_short_hash(facts)}"
    return cache_folder() / "wheels" / named


def find(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob("*.whl"))), None)


def build(python: Path, folder: Path, engine_block: str, environment: dict[str, str], log: Path) -> Path:
    """Builds the wheel into its slot unless somebody else has meanwhile; one builder at a time."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(folder.with_name(folder.name + ".lock"), "another set-up is building the engine"):
        if (ready := find(folder)) is not None:
            return ready
        work = folder.with_name(folder.name + ".building")
        shutil.rmtree(work, ignore_errors=True)  # a killed builder's remains
        work.mkdir()
        lock = work / "engine.txt"
        lock.write_text(engine_block)
        # No pip cache: pip would hand out a wheel built with other options.
        command = [
            str(python),
            "-m",
            "pip",
            "wheel",
            "-v",
            "--no-deps",
            "--no-build-isolation",
            "--no-cache-dir",
        ]
        command += ["--progress-bar", "off", "--require-hashes", "-r", str(lock), "-w", str(work / "out")]
        jobs = _jobs()
        title = f"building llama.cpp for this machine ({jobs} jobs; about 13 CPU minutes, once)"
        settings = {"CMAKE_ARGS": cmake_args(), "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs), **compiler_flags()}
        progress.run_step(title, command, log, env={**environment, **settings})
        shutil.rmtree(folder, ignore_errors=True)
        (work / "out").rename(folder)  # atomic: a slot is whole or absent
        shutil.rmtree(work, ignore_errors=True)
    built = find(folder)
    if built is None:
        raise progress.StepFailed(f"the build left no wheel in {folder} (full output: {log})")
    return built


@contextmanager
def exclusive(path: Path, holder: str) -> Iterator[None]:
    """Holds a lock that the kernel drops when we die; says so while it waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        started = reported = time.monotonic()
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                now = time.monotonic()
                if now - reported >= progress.REPORT_EVERY_S or reported == started:
                    reported = now
                    progress.say(f"waiting, {holder}: {now - started:.0f} s")
                time.sleep(0.2)
        yield


def _jobs() -> int:
    memory_gb = preflight.available_memory_gb()
    by_memory = os.cpu_count() or 1 if memory_gb is None else max(1, int(memory_gb / _MEMORY_PER_JOB_GB))
    return max(1, min(len(os.sched_getaffinity(0)), by_memory))


def _cpu_flags() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return " ".join(sorted(flags.partition(":")[2].split()))


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
