"""How much memory a new process may take: what the kernel can free counts, what a cgroup forbids does not.

Linux. A container's limit is read from cgroup v2 or v1, from its own group up to the root, because the
tightest of them counts. Page cache inside a group counts as free: the kernel drops it before it kills.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_KIB = 1024
# cgroup v1 writes a number near 2^63 where no limit is set.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True)
class AvailableMemory:
    """`limited_by` says in words what sets the limit."""

    bytes: int
    limited_by: str


def available_memory(root: Path = Path("/")) -> AvailableMemory | None:
    """The tightest limit; None where nothing can be learned. `root` holds proc/ and sys/."""
    found = [*_of_machine(root), *_of_groups(root)]
    return min(found, key=lambda limit: limit.bytes) if found else None


def _of_machine(root: Path) -> Iterator[AvailableMemory]:
    for line in _lines(root / "proc/meminfo"):
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            yield AvailableMemory(int(rest.split()[0]) * _KIB, "the machine's free and reclaimable memory")


def _of_groups(root: Path) -> Iterator[AvailableMemory]:
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            base = root / "sys/fs/cgroup"
            yield from _each_level(base, path, "memory.max", "memory.current", "inactive_file", "active_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            yield from _each_level(base, path, *files, "total_inactive_file", "total_active_file")


def _each_level(
    base: Path, path: str, limit_file: str, used_file: str, *cache: str
) -> Iterator[AvailableMemory]:
    """From the group up to the root of the hierarchy. Inside a container the group's own path may not exist:
    the root that it sees is then its own group."""
    group = base / path.lstrip("/")
    for level in (group, *group.parents):
        limit, used = _number(level / limit_file), _number(level / used_file)
        if limit is not None and used is not None and limit < _NO_LIMIT:
            reclaimable = _sum_of(level / "memory.stat", cache)
            free = max(0, limit - max(0, used - reclaimable))
            yield AvailableMemory(
                free, f"the limit of {limit / 1e6:.0f} MB of the control group {level.name}"
            )
        if level == base:
            return


def _number(path: Path) -> int | None:
    """The number in a file; None for "max" and for what cannot be read."""
    for line in _lines(path):
        with contextlib.suppress(ValueError):
            return int(line)
    return None


def _sum_of(path: Path, names: tuple[str, ...]) -> int:
    parts = (line.split() for line in _lines(path))
    return sum(int(part[1]) for part in parts if len(part) == 2 and part[0] in names)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
