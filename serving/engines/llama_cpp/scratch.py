"""A private directory for a child's temporary files, gone with the child or at the next start.

Its owner holds a lock on it, which ends with the owner however that dies: a directory that nobody has locked
is left over.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "tidegate-engine-"


class Scratch:
    """One directory, for this user only."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def make(cls, parent: Path | None = None) -> Scratch:
        """Removes what others left, and makes a new one. Raises OSError."""
        parent = parent or Path(tempfile.gettempdir())
        _remove_left_over(parent)
        while True:
            path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            lock = _locked(path)
            if lock is not None:
                return cls(path, lock)
            # Another start took it for left over in between.

    def remove(self) -> None:
        """May be repeated."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def _locked(path: Path) -> int | None:
    """A locked descriptor; None when the directory is somebody's, is gone, or is none."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_uid == os.getuid() and os.fstat(lock).st_nlink and path.exists():
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


def _remove_left_over(parent: Path) -> None:
    for path in parent.glob(f"{_PREFIX}*"):
        lock = _locked(path)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)
