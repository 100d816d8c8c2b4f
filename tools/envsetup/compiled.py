"""The tidegate package with its routing code compiled, as in the gateway's image, unpacked in one folder.

A folder of its own that is put on PYTHONPATH: a compiled module beside its source would be imported instead
of it, and hide what is edited there.
"""

from __future__ import annotations

import hashlib
import shutil
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

from . import progress
from .venv import Venv, clean_environment

_MADE_FROM = ".made-from"
_SKIPPED = ("__pycache__", "*.so", "*.pyc")


def digest(sdk: Path, locks: Path) -> str:
    """Changes with a source, the compiler's lock and the Python it is built for."""
    state = hashlib.sha256(str(sysconfig.get_config_var("EXT_SUFFIX")).encode())
    state.update((locks / "compile.txt").read_bytes())
    for path in _sources(sdk):
        state.update(b"\0" + path.relative_to(sdk).as_posix().encode() + b"\0" + path.read_bytes())
    return state.hexdigest()[:16]


def is_current(folder: Path, wanted: str) -> bool:
    try:
        return (folder / _MADE_FROM).read_text() == wanted
    except OSError:
        return False


def build(venv: Venv, sdk: Path, folder: Path, wanted: str, log: Path) -> None:
    """Compiles a copy of `sdk` into `folder`, which is not there before and is whole or absent afterwards.

    Raises progress.StepFailed.
    """
    work = folder.with_name(folder.name + ".building")
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(sdk, work / "sdk", ignore=shutil.ignore_patterns(*_SKIPPED))
    command = [str(venv.python), "-m", "hatchling", "build", "-t", "wheel", "-d", str(work / "out")]
    settings = {"HATCH_BUILD_HOOK_ENABLE_MYPYC": "true"}
    environment = {**clean_environment(), **settings}
    progress.run_step(
        "compiling the routing code (a minute)", command, log, env=environment, cwd=work / "sdk"
    )
    wheels = list((work / "out").glob("*.whl"))
    if len(wheels) != 1:
        raise progress.StepFailed(f"the build left {len(wheels)} wheels (full output: {log})")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(work / "whole")
    (work / "whole" / _MADE_FROM).write_text(wanted)
    (work / "whole").rename(folder)
    shutil.rmtree(work, ignore_errors=True)


def _sources(sdk: Path) -> Iterator[Path]:
    yield sdk / "pyproject.toml"
    yield from sorted(path for path in (sdk / "tidegate").rglob("*.py*") if path.suffix != ".pyc")
