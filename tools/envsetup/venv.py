"""One virtual environment of this checkout: made, repaired when a set-up was killed half way, stamped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from . import progress

_UNFINISHED = ".unfinished"


class Venv:
    """A virtual environment at a fixed place.

    While it is changed it holds a marker file. A set-up that finds the marker was preceded by one that was
    killed, and pip trusts a half-unpacked package as installed, so the environment is made anew.
    """

    def __init__(self, folder: Path, logs: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        self._logs = logs

    def stamped(self, group: str, digest: str) -> bool:
        return self.usable() and self._stamp(group, digest).exists()

    def stamp(self, group: str, digest: str) -> None:
        for old in self.folder.glob(f".stamp-{group}-*"):
            old.unlink()
        self._stamp(group, digest).touch()

    def unstamp(self) -> None:
        for stamp in self.folder.glob(".stamp-*"):
            stamp.unlink()

    def usable(self) -> bool:
        """Whole, with a Python that still exists, and made for this place (scripts hold absolute paths)."""
        if (self.folder / _UNFINISHED).exists() or not os.access(self.python, os.X_OK):
            return False
        try:
            with (self.folder / "bin" / "pip").open(errors="replace") as script:
                head = script.readline() + script.readline()
        except OSError:
            return False
        return str(self.folder) in head

    def open_for_change(self) -> None:
        """Makes the environment if it is absent or broken; from here to `close` it counts as unfinished."""
        if not self.usable():
            if self.folder.exists():
                progress.say(f"{self.folder.name} is unfinished or broken: making it anew")
                shutil.rmtree(self.folder)
            self.folder.mkdir()
            (self.folder / _UNFINISHED).touch()
            command = [sys.executable, "-m", "venv", str(self.folder)]
            progress.run_step(
                f"making {self.folder.name}", command, self._log("venv"), env=clean_environment()
            )
        (self.folder / _UNFINISHED).touch()

    def close(self) -> None:
        (self.folder / _UNFINISHED).unlink(missing_ok=True)

    def pip_install(self, title: str, arguments: Sequence[str], log_name: str) -> None:
        options = ["--progress-bar", "off", "--no-build-isolation"]
        command = [str(self.python), "-m", "pip", "install", *options, *arguments]
        progress.run_step(title, command, self._log(log_name), env=clean_environment())

    def run(self, title: str, arguments: Sequence[str], log_name: str, cwd: Path | None = None) -> None:
        """Runs a program of the environment that has little to do when it was run before."""
        command = [str(self.python), *arguments]
        environment = clean_environment()
        progress.run_step(title, command, self._log(log_name), env=environment, cwd=cwd, often_done=True)

    def works(self, code: str) -> bool:
        """Whether this code runs in the environment; a crash by an illegal instruction is a no, too."""
        finished = subprocess.run(
            [str(self.python), "-c", code], env=clean_environment(), capture_output=True
        )
        return finished.returncode == 0

    def _stamp(self, group: str, digest: str) -> Path:
        return self.folder / f".stamp-{group}-{digest}"

    def _log(self, name: str) -> Path:
        return self._logs / f"setup-{name}.log"


def clean_environment() -> dict[str, str]:
    """The caller's environment (with pip's own configuration) minus what would redirect the installation."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _REDIRECTING and not name.startswith("HATCH_")
    }
    environment.update(
        PIP_NO_INPUT="1", PIP_DISABLE_PIP_VERSION_CHECK="1", PYTHONNOUSERSITE="1", PIP_USER="0"
    )
    return environment


_REDIRECTING = frozenset(
    (
        "PYTHONPATH",
        "PYTHONHOME",
        "PIP_TARGET",
        "PIP_PREFIX",
        "PIP_ROOT",
        "PIP_REQUIRE_VIRTUALENV",
        "VIRTUAL_ENV",
    )
)
