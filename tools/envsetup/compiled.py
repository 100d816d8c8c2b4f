"""The tidegate package with its routing code compiled, as in the gateway's image, unpacked in a folder.

The folder is put on PYTHONPATH: a compiled module beside its source would be imported instead of it, and
hide what is edited there. It is named after all it was made from and never changed, so that programs which
run from it go on when the sources change.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import preflight, progress
from .venv import Venv, clean_environment

CURRENT = "current"
KEPT_S = 24 * 3600.0
_SKIPPED = ("__pycache__", "*.so", "*.pyc")
_ASKS = (
    "import json, sysconfig;"
    "print(json.dumps([sysconfig.get_config_var('EXT_SUFFIX'), sysconfig.get_path('include')]))"
)


@dataclass(frozen=True, slots=True)
class Target:
    """The Python that is compiled for: what its extensions end in, and where its headers are."""

    suffix: str
    include: Path

    @classmethod
    def of(cls, venv: Venv) -> Target:
        told = subprocess.run(
            [str(venv.python), "-c", _ASKS],
            capture_output=True,
            text=True,
            check=True,
            env=clean_environment(),
        )
        suffix, include = json.loads(told.stdout)
        return cls(suffix, Path(include))


def digest(sdk: Path, lock: Path, target: Target) -> str:
    """Changes with a source, the compiler's lock and the Python that is compiled for."""
    state = hashlib.sha256(target.suffix.encode())
    state.update(lock.read_bytes())
    for path in _sources(sdk):
        state.update(b"\0" + path.relative_to(sdk).as_posix().encode() + b"\0" + path.read_bytes())
    return state.hexdigest()[:16]


def prepare(venv: Venv, sdk: Path, lock: Path, folder: Path, log: Path) -> Path:
    """Where the package lies compiled; `folder`/current is a link to it, and is absent when this fails.

    Raises preflight.Unmet or progress.StepFailed. One at a time (the caller holds a lock).
    """
    link, work = folder / CURRENT, folder / "building"
    try:
        link.unlink(missing_ok=True)
        target = Target.of(venv)
        shutil.rmtree(work, ignore_errors=True)  # a killed builder's remains
        # Sources may change while they are compiled: what is compiled, and named, is this copy.
        shutil.copytree(sdk, work / "sdk", ignore=shutil.ignore_patterns(*_SKIPPED))
        place = folder / digest(work / "sdk", lock, target)
        if not place.exists():
            preflight.check_extensions_build(target.include)
            _build(venv, work, log).rename(place)  # atomic: a place is whole or absent
        place.touch()
        link.symlink_to(place.name)
        _remove_old(folder, place)
    except (OSError, subprocess.SubprocessError) as error:
        raise progress.StepFailed(f"the routing code could not be compiled: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return place


def _build(venv: Venv, work: Path, log: Path) -> Path:
    command = [str(venv.python), "-m", "hatchling", "build", "-t", "wheel", "-d", str(work / "out")]
    environment = {**clean_environment(), "HATCH_BUILD_HOOK_ENABLE_MYPYC": "true"}
    title = "compiling the routing code (a minute and a half, once)"
    progress.run_step(title, command, log, env=environment, cwd=work / "sdk")
    for wheel in (work / "out").glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(work / "whole")
    if not list((work / "whole").glob("tidegate/routing/*.so")):
        raise progress.StepFailed(f"the build left nothing compiled (full output: {log})")
    return work / "whole"


def _remove_old(folder: Path, place: Path) -> None:
    """What was not asked for in a day: nothing runs from it any more."""
    for other in folder.iterdir():
        if other.is_symlink() or other == place:
            continue
        if time.time() - other.stat().st_mtime > KEPT_S:
            shutil.rmtree(other, ignore_errors=True)


def _sources(sdk: Path) -> Iterator[Path]:
    yield sdk / "pyproject.toml"
    yield from sorted(path for path in (sdk / "tidegate").rglob("*.py*") if path.suffix != ".pyc")
