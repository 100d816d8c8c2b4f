"""What can be prepared: the environments `runtime`, `dev` and `proto`, the demo's `models`, `compiled`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from . import compiled, engine_wheel, locks, preflight, progress
from .venv import Venv, clean_environment

NAMES = ("runtime", "dev", "proto", "models", "compiled")
ROOT = Path(__file__).resolve().parents[2]
_LOGS = ROOT / ".cache"
# In it `current` is the tidegate package as the gateway's image holds it: resolved, it goes on PYTHONPATH.
COMPILED = ROOT / ".cache" / "compiled"
_LOADS_ENGINE = "import llama_cpp; llama_cpp.llama_backend_init()"
_PREPARES_MODELS = (
    "from serving.engines.llama_cpp import bundled, prepare\n"
    "raise SystemExit(prepare.main([str(bundled.bundled_model()), '--model', bundled.MODEL]))"
)
# What each group is made from; a change in one of these files sets it up again.
_SOURCES = {
    "runtime": ("build.txt", "runtime.txt", "model.txt"),
    "dev": ("build.txt", "dev.txt", "model.txt"),
    "proto": ("proto.txt",),
}
_PROJECTS = ("pyproject.toml", "sdk/pyproject.toml")


def prepare(name: str) -> None:
    """Brings one group up to date. Raises preflight.Unmet or progress.StepFailed."""
    if name == "models":
        _prepare_models()
        return
    if name == "compiled":
        _prepare_compiled()
        return
    venv = Venv(ROOT / (".venv-proto" if name == "proto" else ".venv"), _LOGS)
    if _is_current(venv, name):
        return
    preflight.check_machine(ROOT, engine_wheel.cache_folder(), builds_engine=_builds_engine(name))
    with engine_wheel.exclusive(_LOGS / "setup.lock", "another set-up of this checkout is running"):
        if _is_current(venv, name):
            return
        venv.open_for_change()
        venv.unstamp()
        if name == "proto":
            title = "installing the protobuf compiler"
            venv.pip_install(title, _locked(ROOT / "requirements" / "proto.txt"), "proto")
        else:
            _install_programs(venv, name)
        venv.close()
        for group in ("dev", "runtime") if name == "dev" else (name,):
            venv.stamp(group, _digest(group))
        progress.say(f"{venv.folder.name} is ready ({name})")


def _is_current(venv: Venv, name: str) -> bool:
    return venv.stamped(name, _digest(name))


def _digest(name: str) -> str:
    sources = [f"requirements/{source}" for source in _SOURCES[name]]
    # Another accelerator, or other flags, are another engine.
    settings = " ".join((os.environ.get("CMAKE_ARGS", ""), *engine_wheel.compiler_flags().values())).strip()
    return locks.digest(ROOT, [*sources, *(() if name == "proto" else _PROJECTS)], settings)


def _builds_engine(name: str) -> bool:
    if name == "proto":
        return False
    _, engine = locks.split_engine(ROOT / "requirements" / f"{name}.txt")
    return engine_wheel.find(engine_wheel.slot(engine)) is None


def _locked(lock: Path) -> list[str]:
    # Wheels only: building a package from source would need build requirements that no lock names.
    return ["--require-hashes", "--only-binary", ":all:", "-r", str(lock)]


def _install_programs(venv: Venv, name: str) -> None:
    requirements = ROOT / "requirements"
    rest, engine = locks.split_engine(requirements / f"{name}.txt")
    lock = _LOGS / f"{name}-without-engine.txt"
    lock.write_text(rest)
    venv.pip_install("installing the build tools", _locked(requirements / "build.txt"), "build-tools")
    venv.pip_install(f"installing the {name} requirements", _locked(lock), f"{name}-requirements")
    _install_engine(venv, engine)
    model = ["--no-deps", *_locked(requirements / "model.txt")]
    venv.pip_install("installing the demo's model", model, "model")
    packages = ["--no-deps", "-e", str(ROOT / "sdk"), "-e", str(ROOT)]
    venv.pip_install("installing tidegate", packages, "packages")


def _install_engine(venv: Venv, engine: str) -> None:
    folder = engine_wheel.slot(engine)
    for attempt in (1, 2):
        log = _LOGS / "setup-engine-build.log"
        wheel = engine_wheel.find(folder) or engine_wheel.build(
            venv.python, folder, engine, clean_environment(), log
        )
        arguments = ["--no-deps", "--no-index", "--force-reinstall", str(wheel)]
        venv.pip_install("installing llama.cpp", arguments, "engine")
        if venv.works(_LOADS_ENGINE):
            return
        if attempt == 1:
            progress.say(f"the kept wheel does not load on this machine, building it again: {wheel}")
            shutil.rmtree(folder)
    raise progress.StepFailed(f"llama.cpp was built but does not load: {venv.python} -c '{_LOADS_ENGINE}'")


def _prepare_models() -> None:
    """Requantizes the packaged model for the demo's nodes and measures each variant; kept once it is made."""
    Venv(ROOT / ".venv", _LOGS).run("preparing the models", ["-c", _PREPARES_MODELS], "models", cwd=ROOT)


def _prepare_compiled() -> None:
    """Compiles the routing code unless it is what the sources make already. Needs `dev`."""
    lock = ROOT / "requirements" / "compile.txt"
    with engine_wheel.exclusive(_LOGS / "setup.lock", "another set-up of this checkout is running"):
        venv = Venv(ROOT / ".venv", _LOGS)
        compiled.prepare(venv, ROOT / "sdk", lock, COMPILED, _LOGS / "setup-compiled.log")
