"""The set-up script: preflight messages, progress, half-made environments, one build at a time."""

import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from envsetup import engine_wheel, groups, preflight, progress
from envsetup.venv import Venv, clean_environment


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIDEGATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    return tmp_path / "cache"


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class TestPreflight:
    def lines(self, tmp_path: Path) -> list[str]:
        with pytest.raises(preflight.Unmet) as caught:
            preflight.check_machine(tmp_path, tmp_path / "cache", builds_engine=True)
        return caught.value.lines

    def test_this_machine_passes(self, tmp_path: Path) -> None:
        preflight.check_machine(tmp_path, tmp_path / "cache", builds_engine=True)

    def test_missing_compilers_are_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert self.lines(tmp_path) == [
            "no compiler gcc: apt-get install gcc g++ (or set CC)",
            "cmake (at least 3.21) is missing: apt-get install cmake",
            "make is missing: apt-get install make",
        ]
        preflight.check_machine(tmp_path, tmp_path / "cache", builds_engine=False)

    def test_compiler_without_headers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        broken = script(tmp_path / "broken-g++", "exit 1")
        monkeypatch.setenv("CXX", str(broken))
        assert self.lines(tmp_path) == [
            f"{broken} cannot build a small program: apt-get install g++ libc6-dev"
        ]

    def test_old_cmake(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        script(tmp_path / "bin" / "cmake", "echo cmake version 3.18.4")
        monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
        assert self.lines(tmp_path) == ["cmake is too old (version 3.18), at least 3.21 is needed: update it"]

    def test_python_headers(self, tmp_path: Path) -> None:
        include = tmp_path / "python3.11"
        include.mkdir()
        (include / "Python.h").write_text("")
        preflight.check_extensions_build(include)
        (include / "Python.h").unlink()
        with pytest.raises(
            preflight.Unmet, match=r"headers are missing in .*: apt-get install python3.11-dev"
        ):
            preflight.check_extensions_build(include)

    def test_disk_and_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(preflight, "DISK_NEEDED_GB", 1e6)
        monkeypatch.setattr(preflight, "MEMORY_NEEDED_GB", 1e6)
        disk, memory = self.lines(tmp_path)
        assert "1000000 GB needed: free some, or clone elsewhere" in disk
        assert memory.endswith("close some programs, add swap, or raise the container's limit")

    def test_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(preflight.Unmet) as caught:
            preflight.check_machine(tmp_path, tmp_path / "file" / "cache", builds_engine=False)
        (line,) = caught.value.lines
        assert line.endswith("set TIDEGATE_CACHE to a folder you own")


class TestProgress:
    def test_failure_is_one_line_that_names_the_log(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        command = ["sh", "-c", "echo start; echo 'ERROR: no matching distribution'; echo bye; exit 3"]
        with pytest.raises(progress.StepFailed) as caught:
            progress.run_step("installing", command, log)
        text = str(caught.value)
        assert "ERROR: no matching distribution" in text
        assert str(log) in text
        assert "\n" not in text

    def test_lost_network_is_named_as_such(self, tmp_path: Path) -> None:
        output = "WARNING: broken by 'NewConnectionError' ... ERROR: No matching distribution"
        with pytest.raises(
            progress.StepFailed, match="the package index cannot be reached: check the network"
        ):
            progress.run_step("installing", ["sh", "-c", f'echo "{output}"; exit 1'], tmp_path / "log")

    def test_long_step_reports_its_share(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(progress, "REPORT_EVERY_S", 0.1)
        progress.run_step("building", ["sh", "-c", "echo '[ 42%] Building'; sleep 0.5"], tmp_path / "log")
        assert "building: 0 s, 42 %" in capsys.readouterr().out

    def test_report_comes_at_least_every_ten_seconds(self) -> None:
        assert progress.REPORT_EVERY_S < 10

    @pytest.mark.parametrize(
        ("output", "share"),
        [("[ 42%] Building CXX", 42), ("[30/300] Building", 10), ("Collecting numpy", None), ("[0/0]", None)],
    )
    def test_share_done(self, output: str, share: int | None) -> None:
        assert progress.share_done(output) == share

    def test_interrupted_step_leaves_no_child(self, tmp_path: Path, root: Path) -> None:
        """SIGTERM to the set-up ends the command it runs, and the command's own children."""
        pid_file = tmp_path / "pid"
        code = (
            "import signal, sys; from pathlib import Path; from envsetup import progress\n"
            f"command = ['sh', '-c', 'sleep 60 & echo $! > {pid_file}; wait']\n"
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
            f"progress.run_step('step', command, Path('{tmp_path}/log'))"
        )
        setup = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(root / "tools")},
            start_new_session=True,
        )
        try:
            grandchild = int(wait_for(lambda: pid_file.exists() and pid_file.read_text().strip()))
            setup.send_signal(signal.SIGTERM)
            assert setup.wait(10) == 143
            assert wait_for(lambda: not alive(grandchild))
        finally:
            if setup.poll() is None:
                setup.kill()
                setup.wait()

    def test_signal_while_a_command_starts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It comes when the child runs already, but before anybody holds it."""
        started: list[subprocess.Popen[bytes]] = []
        popen = subprocess.Popen

        def interrupted_start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
            started.append(popen(*arguments, **options))
            os.kill(os.getpid(), signal.SIGINT)
            return started[0]

        monkeypatch.setattr(progress.subprocess, "Popen", interrupted_start)
        # Whoever runs the tests in the background may have had the signal ignored.
        former = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                progress.run_step("step", ["sleep", "60"], tmp_path / "log")
        finally:
            signal.signal(signal.SIGINT, former)
        assert started[0].returncode == -signal.SIGTERM


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(ready, within_s: float = 10.0):  # type: ignore[no-untyped-def]
    limit = time.monotonic() + within_s
    while not (value := ready()):
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.02)
    return value


class TestVenv:
    @pytest.fixture
    def venv(self, tmp_path: Path) -> Venv:
        """An environment as `python -m venv` and pip leave it, without the seconds that takes."""
        folder = tmp_path / ".venv"
        script(folder / "bin" / "pip", "").write_text(f"#!{folder}/bin/python\n")
        (folder / "bin" / "python").symlink_to(sys.executable)
        return Venv(folder, tmp_path / "logs")

    def test_stamp_counts_until_something_changes(self, venv: Venv) -> None:
        assert not venv.stamped("dev", "one")
        venv.stamp("dev", "one")
        assert venv.stamped("dev", "one")
        assert not venv.stamped("dev", "two")
        venv.stamp("dev", "two")
        assert not venv.stamped("dev", "one")

    def test_killed_set_up_is_noticed(self, venv: Venv) -> None:
        venv.stamp("dev", "one")
        venv.open_for_change()  # and killed before close()
        assert not venv.usable()
        assert not venv.stamped("dev", "one")
        venv.close()
        assert venv.stamped("dev", "one")

    def test_moved_or_pythonless_environment_is_not_usable(self, venv: Venv, tmp_path: Path) -> None:
        assert venv.usable()
        moved = venv.folder.rename(tmp_path / "moved")
        assert not Venv(moved, tmp_path).usable()
        back = Venv(moved.rename(venv.folder), tmp_path)
        assert back.usable()
        back.python.unlink()
        assert not back.usable()

    def test_half_made_environment_is_made_anew(self, tmp_path: Path) -> None:
        venv = Venv(tmp_path / ".venv", tmp_path / "logs")
        (venv.folder / "lib").mkdir(parents=True)
        (venv.folder / "lib" / "half-unpacked").write_text("")
        venv.open_for_change()
        venv.close()
        assert venv.usable()
        assert not (venv.folder / "lib" / "half-unpacked").exists()
        assert venv.works("import pip")
        assert not venv.works("import os; os.abort()")

    def test_redirections_do_not_reach_pip(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PIP_TARGET", "/elsewhere")
        monkeypatch.setenv("PYTHONPATH", "/elsewhere")
        monkeypatch.setenv("HATCH_BUILD_HOOK_ENABLE_MYPYC", "true")
        monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
        environment = clean_environment()
        assert "PIP_TARGET" not in environment
        assert "PYTHONPATH" not in environment
        assert "HATCH_BUILD_HOOK_ENABLE_MYPYC" not in environment
        assert environment["PIP_FIND_LINKS"] == "/wheels"


class TestEngineWheel:
    BLOCK = "llama-cpp-python==0.3.36 \\\n    --hash=sha256:cc\n"

    def test_slot_depends_on_options_and_lock(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = engine_wheel.slot(self.BLOCK)
        assert plain.parent == cache / "wheels"
        assert engine_wheel.slot(self.BLOCK) == plain
        assert engine_wheel.slot(self.BLOCK.replace("cc", "dd")) != plain
        monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=on")
        assert engine_wheel.cmake_args() == "-DLLAVA_BUILD=OFF -DGGML_CUDA=on"
        assert engine_wheel.slot(self.BLOCK) != plain

    def test_amx_is_left_out_where_the_processor_has_it(
        self, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CXXFLAGS", "-O2")
        monkeypatch.delenv("CFLAGS", raising=False)
        monkeypatch.setattr(engine_wheel, "_cpu_flags", lambda: "avx2 avx512_vnni")
        assert engine_wheel.compiler_flags() == {}
        without = engine_wheel.slot(self.BLOCK)
        monkeypatch.setattr(engine_wheel, "_cpu_flags", lambda: "amx_int8 avx2 avx512_vnni")
        flags = {"CFLAGS": "-U__AMX_INT8__", "CXXFLAGS": "-O2 -U__AMX_INT8__"}
        assert engine_wheel.compiler_flags() == flags
        folder = engine_wheel.slot(self.BLOCK)
        assert folder != without
        python = self.fake_pip(tmp_path, "$CFLAGS:$CXXFLAGS")
        engine_wheel.build(python, folder, self.BLOCK, dict(os.environ), tmp_path / "log")
        assert (tmp_path / "calls").read_text() == "-U__AMX_INT8__:-O2 -U__AMX_INT8__\n"

    def test_cache_folder_follows_xdg(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TIDEGATE_CACHE", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert engine_wheel.cache_folder() == tmp_path / "tidegate"

    def fake_pip(self, tmp_path: Path, noted: str = "$CMAKE_ARGS") -> Path:
        """Stands in for the environment's Python: notes settings, leaves a wheel in the folder after -w."""
        body = f'echo "{noted}" >> {tmp_path}/calls\nwhile [ "$1" != -w ]; do shift; done\n'
        return script(tmp_path / "python", body + 'mkdir -p "$2"\nsleep 0.2\ntouch "$2/engine.whl"')

    def test_two_builders_build_once(self, cache: Path, tmp_path: Path) -> None:
        python = self.fake_pip(tmp_path)
        folder = engine_wheel.slot(self.BLOCK)
        built: list[Path] = []

        def build(log: Path) -> None:
            built.append(engine_wheel.build(python, folder, self.BLOCK, dict(os.environ), log))

        threads = [threading.Thread(target=build, args=(tmp_path / f"log-{number}",)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert built == [folder / "engine.whl"] * 2
        assert (tmp_path / "calls").read_text().splitlines() == ["-DLLAVA_BUILD=OFF"]

    def test_killed_build_leaves_no_slot(self, cache: Path, tmp_path: Path) -> None:
        folder = engine_wheel.slot(self.BLOCK)
        remains = folder.with_name(folder.name + ".building") / "out"
        remains.mkdir(parents=True)
        (remains / "half.whl").write_text("half")
        failing = script(tmp_path / "failing", "echo 'error: out of memory'; exit 1")
        with pytest.raises(progress.StepFailed, match="out of memory"):
            engine_wheel.build(failing, folder, self.BLOCK, dict(os.environ), tmp_path / "log")
        assert engine_wheel.find(folder) is None
        built = engine_wheel.build(
            self.fake_pip(tmp_path), folder, self.BLOCK, dict(os.environ), tmp_path / "log"
        )
        assert [path.name for path in folder.iterdir()] == [built.name] == ["engine.whl"]


def test_version_check_runs_on_old_pythons(root: Path) -> None:
    """Everything before the check must be understood by them, or they say `SyntaxError` instead."""
    source = (root / "tools" / "setup_env.py").read_text()
    before = source.partition("sys.exit(2)")[0]
    assert "sys.version_info < (3, 11)" in before
    assert re.findall(r"^(?:from|import) (\w+)", before, re.M) == ["signal", "sys"]


def test_unknown_group_is_refused(root: Path) -> None:
    command = [sys.executable, str(root / "tools" / "setup_env.py"), "everything"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 2
    assert (
        finished.stderr == "setup: unknown group 'everything'; there are: runtime dev proto models compiled\n"
    )


def test_groups_are_made_from_files_that_exist(root: Path) -> None:
    assert root == groups.ROOT
    for name in ("runtime", "dev", "proto"):
        assert groups._digest(name)


def test_an_environment_with_another_engine_is_set_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    monkeypatch.setattr(engine_wheel, "_cpu_flags", lambda: "avx2")
    digests = [groups._digest("dev"), groups._digest("dev")]
    monkeypatch.setattr(engine_wheel, "_cpu_flags", lambda: "avx2 amx_int8")
    digests.append(groups._digest("dev"))
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=on")
    digests.append(groups._digest("dev"))
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
