"""The routing code as images hold it: compiled. What the sources promise is tested on it, too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from envsetup import compiled, groups, preflight, progress, venv

# What is imported from there, one module a line.
WHERE = """
import importlib, pkgutil, tidegate.routing
for found in pkgutil.walk_packages(tidegate.routing.__path__, "tidegate.routing."):
    print(importlib.import_module(found.name).__file__)
"""


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # Not under coverage: it would count the copies of the sources beside the compiled modules as never run.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    environment.update(PYTHONPATH=str(groups.COMPILED), PYTHONDONTWRITEBYTECODE="1")
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        preflight.check_extensions_build()
    except preflight.Unmet as unmet:
        pytest.skip("; ".join(unmet.lines))
    groups.prepare("compiled")
    return groups.COMPILED


@pytest.mark.timeout(600)
def test_every_module_of_the_routing_package_is_machine_code(folder: Path, root: Path) -> None:
    listed = python("-c", WHERE, cwd=folder)
    assert listed.returncode == 0, listed.stderr
    files = [Path(line) for line in listed.stdout.split()]
    assert {file.suffix for file in files} == {".so"}
    assert all(file.is_relative_to(folder) for file in files)
    sources = root / "sdk" / "tidegate" / "routing"
    assert len(files) == len(list(sources.rglob("*.py"))) - 1  # walk_packages leaves the package itself out


@pytest.mark.timeout(600)
def test_compiled_routing_passes_the_tests_of_its_sources(folder: Path, root: Path) -> None:
    tests = ["tests/unit/tidegate/routing", "tests/unit/simulator", "tests/unit/gateway"]
    ran = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests, cwd=root)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr


def test_the_checkout_itself_holds_nothing_compiled(root: Path) -> None:
    assert list((root / "sdk").rglob("*.so")) == []


class TestDigest:
    @pytest.fixture
    def sdk(self, tmp_path: Path) -> Path:
        package = tmp_path / "sdk" / "tidegate"
        package.mkdir(parents=True)
        (package / "a.py").write_text("x = 1\n")
        (tmp_path / "sdk" / "pyproject.toml").write_text("[project]\n")
        (tmp_path / "compile.txt").write_text("mypy==1\n")
        return tmp_path / "sdk"

    def test_follows_sources_names_and_the_compiler(self, sdk: Path, tmp_path: Path) -> None:
        def now() -> str:
            return compiled.digest(sdk, tmp_path)

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

    def test_what_fails_to_build_leaves_nothing(self, sdk: Path, tmp_path: Path) -> None:
        environment = venv.Venv(Path(sys.prefix), tmp_path)
        with pytest.raises(progress.StepFailed, match="full output"):
            compiled.build(environment, sdk, tmp_path / "compiled", "these sources", tmp_path / "log")
        assert not compiled.is_current(tmp_path / "compiled", "these sources")
        assert not (tmp_path / "compiled").exists()


def test_what_is_out_of_date_goes_before_anything_can_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "COMPILED", tmp_path / "compiled")
    monkeypatch.setattr(groups, "_LOGS", tmp_path)
    monkeypatch.setenv("CC", "no-such-compiler")
    (tmp_path / "compiled").mkdir()
    (tmp_path / "compiled" / ".made-from").write_text("older sources")
    assert compiled.is_current(tmp_path / "compiled", "older sources")
    with pytest.raises(preflight.Unmet, match="no compiler no-such-compiler"):
        groups.prepare("compiled")
    assert not (tmp_path / "compiled").exists()
