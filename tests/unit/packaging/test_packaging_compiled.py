"""The routing code as images hold it: compiled. What the sources promise is tested on it, too."""

import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from envsetup import compiled, groups, preflight, progress, venv

# What is imported from there, one module a line.
WHERE = """
import importlib, pkgutil, tidegate.routing
for found in pkgutil.walk_packages(tidegate.routing.__path__, "tidegate.routing."):
    print(importlib.import_module(found.name).__file__)
"""


# The tests of a folder, on the modules that are imported first: from there, whatever pytest adds to the path.
TESTS = """
import sys, pytest
from tidegate.routing import policy
assert policy.__file__.endswith(".so"), policy.__file__
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *sys.argv[1:]]))
"""
TESTED = ("tidegate", "gateway", "simulator", "serving/openai_api")


def python(code: str, *arguments: str, cwd: Path, path: Path) -> subprocess.CompletedProcess[str]:
    # Not under coverage: it would count the copies of the sources beside the compiled modules as never run.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    environment.update(PYTHONPATH=str(path), PYTHONDONTWRITEBYTECODE="1")
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def place() -> Path:
    """Where the package lies compiled."""
    try:
        preflight.check_extensions_build(Path(sysconfig.get_path("include")))
    except preflight.Unmet as unmet:
        pytest.skip("; ".join(unmet.lines))
    groups.prepare("compiled")
    return (groups.COMPILED / compiled.CURRENT).resolve()


@pytest.mark.timeout(600)
def test_every_module_of_the_routing_package_is_machine_code(place: Path, root: Path) -> None:
    listed = python(WHERE, cwd=root, path=place)
    assert listed.returncode == 0, listed.stderr
    files = [Path(line) for line in listed.stdout.splitlines()]
    assert {file.suffix for file in files} == {".so"}
    assert all(file.is_relative_to(place) for file in files)
    sources = root / "sdk" / "tidegate" / "routing"
    assert len(files) == len(list(sources.rglob("*.py"))) - 1  # walk_packages leaves the package itself out


@pytest.mark.timeout(600)
def test_compiled_routing_passes_the_tests_of_its_sources(place: Path, root: Path) -> None:
    ran = python(TESTS, *(f"tests/unit/{folder}" for folder in TESTED), cwd=root, path=place)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr
    # The control: the sources are no machine code.
    assert "AssertionError" in python(TESTS, cwd=root, path=root / "sdk").stderr


def test_the_checkout_itself_holds_nothing_compiled(root: Path) -> None:
    assert list((root / "sdk").rglob("*.so")) == []


class TestPlaces:
    @pytest.fixture
    def sdk(self, tmp_path: Path) -> Path:
        package = tmp_path / "sdk" / "tidegate"
        package.mkdir(parents=True)
        (package / "a.py").write_text("x = 1\n")
        (tmp_path / "sdk" / "pyproject.toml").write_text("[project]\n")
        (tmp_path / "compile.txt").write_text("mypy==1\n")
        return tmp_path / "sdk"

    def prepare(self, sdk: Path) -> Path:
        environment = venv.Venv(Path(sys.prefix), sdk.parent)
        return compiled.prepare(
            environment, sdk, sdk.parent / "compile.txt", sdk.parent / "compiled", sdk.parent / "log"
        )

    def test_a_place_is_named_after_sources_compiler_and_python(self, sdk: Path, tmp_path: Path) -> None:
        target = compiled.Target(".cpython-311.so", tmp_path)

        def now() -> str:
            return compiled.digest(sdk, tmp_path / "compile.txt", target)

        seen = [now(), now()]
        assert seen[0] == seen[1]
        for change in (
            lambda: (sdk / "tidegate" / "a.py").write_text("x = 2\n"),
            lambda: (sdk / "tidegate" / "a.py").rename(sdk / "tidegate" / "b.py"),
            lambda: (sdk / "pyproject.toml").write_text("[other]\n"),
            lambda: (tmp_path / "compile.txt").write_text("mypy==2\n"),
        ):
            change()
            seen.append(now())
        assert len(set(seen)) == 5
        (sdk / "tidegate" / "__pycache__").mkdir()
        (sdk / "tidegate" / "__pycache__" / "b.cpython-311.pyc").write_bytes(b"x")
        assert now() == seen[-1]
        assert compiled.digest(sdk, tmp_path / "compile.txt", compiled.Target(".x", tmp_path)) != now()

    def test_what_fails_leaves_nothing_to_run(self, sdk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = sdk.parent / "compiled"
        (folder / "older").mkdir(parents=True)
        (folder / compiled.CURRENT).symlink_to("older")
        with pytest.raises(progress.StepFailed, match="full output"):
            self.prepare(sdk)  # there is nothing to build in this project
        assert [path.name for path in folder.iterdir()] == ["older"]  # somebody may still run from it
        (folder / compiled.CURRENT).symlink_to("older")
        monkeypatch.setenv("CC", "no-such-compiler")
        with pytest.raises(preflight.Unmet, match="no compiler no-such-compiler"):
            self.prepare(sdk)
        assert not (folder / compiled.CURRENT).exists()

    def test_a_wheel_without_anything_compiled_is_a_failure(self, sdk: Path) -> None:
        """As when the hook is not run, whatever the reason."""
        (sdk / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
            '[project]\nname = "tidegate"\nversion = "0"\n'
            '[tool.hatch.build.targets.wheel]\npackages = ["tidegate"]\n'
        )
        with pytest.raises(progress.StepFailed, match="the build left nothing compiled"):
            self.prepare(sdk)
        assert list((sdk.parent / "compiled").iterdir()) == []

    def test_the_same_sources_are_compiled_once_and_old_places_go(self, sdk: Path) -> None:
        folder = sdk.parent / "compiled"
        environment = venv.Venv(Path(sys.prefix), sdk.parent)
        name = compiled.digest(sdk, sdk.parent / "compile.txt", compiled.Target.of(environment))
        for other in (name, "yesterday", "just-now"):
            (folder / other).mkdir(parents=True)
        old_s = time.time() - compiled.KEPT_S - 60
        for other in (name, "yesterday"):
            os.utime(folder / other, (old_s, old_s))
        assert self.prepare(sdk) == folder / name
        assert (folder / compiled.CURRENT).resolve() == folder / name
        assert {path.name for path in folder.iterdir()} == {name, "just-now", compiled.CURRENT}
