"""Arguments, checks before binding, and how a program ends. Signals are tested in a child process."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field

from serving.settings import ListenSettings, ProgramSettings, SettingsError, TlsSettings
from serving.startup import (
    ProgramArgs,
    ProgramError,
    bind_socket,
    check_all,
    check_distributions,
    check_exposure,
    is_loopback,
    parse_program_args,
    program_main,
    run_program,
)

TLS = TlsSettings(cert_file=Path("c"), key_file=Path("k"))


class Sample(ProgramSettings):
    program: ClassVar[str] = "sample"
    depth: int = Field(default=1, description="How deep, in meters")


async def nothing(settings: Sample, args: ProgramArgs, stop: asyncio.Event) -> None:
    return


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "unix:/tmp/x"])
def test_loopback_needs_nothing(host: str) -> None:
    assert is_loopback(host)
    check_exposure({"grpc": ListenSettings(host=host)}, keys_configured=False, insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "gateway.example"])
def test_beyond_loopback_needs_tls_and_keys(host: str) -> None:
    plain, secured = ListenSettings(host=host), ListenSettings(host=host, tls=TLS)
    with pytest.raises(ProgramError, match="without TLS and keys: "):
        check_exposure({"grpc": plain}, keys_configured=False, insecure=False)
    with pytest.raises(ProgramError, match="without TLS: "):
        check_exposure({"grpc": plain}, keys_configured=True, insecure=False)
    with pytest.raises(ProgramError, match="without keys: "):
        check_exposure({"grpc": secured}, keys_configured=False, insecure=False)
    check_exposure({"grpc": secured}, keys_configured=True, insecure=False)


def test_insecure_opens_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    check_exposure({"grpc": ListenSettings(host="0.0.0.0")}, keys_configured=False, insecure=True)
    assert "listener is open" in caplog.text


@contextlib.contextmanager
def fake_distribution(folder: Path, name: str, package: str) -> Iterator[None]:
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"{package}/__init__.py,,\n{info.name}/METADATA,,\n")
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def test_package_owned_twice_is_named(tmp_path: Path) -> None:
    check_distributions(["gateway", "serving"])
    with fake_distribution(tmp_path, "other-gateway", "gateway"):
        with pytest.raises(
            ProgramError, match="'gateway' is also installed by the distribution 'other-gateway'"
        ):
            check_distributions(["serving", "gateway"])
        check_distributions(["serving"])


def test_busy_port_is_one_line_that_names_the_setting() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ProgramError) as caught:
            bind_socket(ListenSettings(port=port), "local_api", "edge")
    message = str(caught.value)
    assert f"127.0.0.1:{port} is in use" in message
    assert "TIDEGATE_EDGE__LOCAL_API__PORT" in message
    assert "\n" not in message


def test_free_port_is_bound_and_accepts() -> None:
    with bind_socket(ListenSettings(), "http", "gateway") as bound:
        with socket.create_connection(bound.getsockname()):
            pass


def test_address_of_another_machine() -> None:
    with pytest.raises(ProgramError, match=r"cannot listen on 192\.0\.2\.1:0"):
        bind_socket(ListenSettings(host="192.0.2.1"), "http", "gateway")


def test_help_explains(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_program_args(Sample, "Does a thing.", ["--help"])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    for word in ("Does a thing.", "--config", "--insecure", "depth", "TIDEGATE_SAMPLE__", "exit codes"):
        assert word in told


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_program_args(Sample, "x", ["--version"])
    assert capsys.readouterr().out.startswith("tidegate-sample 0.")


def test_check_config_reports_without_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text("depth = 3\n")
    bad.write_text("dept = 3\n")

    def check(config: Path) -> int:
        argv = ["--check-config", "--config", str(config)]
        return program_main(Sample, nothing, summary="x", packages=["serving"], argv=argv)

    assert check(good) == 0
    assert "settings are fine" in capsys.readouterr().out
    assert check(bad) == 2
    assert capsys.readouterr().err == f'tidegate-sample: {bad}: dept: unknown key, did you mean "depth"?\n'


def test_all_parts_are_checked_and_each_problem_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.toml").write_text("depth = 3\n")

    def raising(error: Exception) -> Callable[[], None]:
        def part() -> None:
            raise error

        return part

    def run(*errors: Exception) -> tuple[int, str]:
        argv = ["--check-config", "--config", str(tmp_path / "good.toml")]
        parts = [raising(error) for error in errors]
        code = program_main(
            Sample, nothing, summary="x", packages=[], argv=argv, check=lambda s, a: check_all(*parts)
        )
        return code, capsys.readouterr().err

    port, keys = ProgramError("port busy"), SettingsError("no key", "no token")
    assert run(port, ProgramError("no model")) == (
        1,
        "tidegate-sample: port busy\ntidegate-sample: no model\n",
    )
    code, told = run(port, keys, SettingsError("no key"))
    assert code == 2
    assert told.splitlines() == [f"tidegate-sample: {line}" for line in ("port busy", "no key", "no token")]


@pytest.mark.parametrize(("error", "code"), [(ProgramError("port busy"), 1), (SettingsError("a", "b"), 2)])
def test_expected_problems_are_lines_not_tracebacks(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main(stop: asyncio.Event) -> None:
        raise error

    assert run_program("sample", main) == code
    expected = "".join(f"tidegate-sample: {line}\n" for line in str(error).splitlines())
    assert capsys.readouterr().err == expected


def test_a_defect_keeps_its_traceback() -> None:
    async def main(stop: asyncio.Event) -> None:
        raise KeyError("defect")

    with pytest.raises(KeyError):
        run_program("sample", main)


CHILD = """
import asyncio, sys
import time
from serving import startup
from serving.startup import run_program
startup.LAST_RESORT_S = 0.3
async def polite(stop):
    print("up", flush=True)
    await stop.wait()
async def deaf(stop):
    print("up", flush=True)
    await asyncio.sleep(60)
async def stuck(stop):
    print("up", flush=True)
    await asyncio.to_thread(time.sleep, 60)
main = {"polite": polite, "deaf": deaf, "stuck": stuck}[sys.argv[1]]
sys.exit(run_program("sample", main, stop_limit_s=float(sys.argv[2])))
"""


@contextlib.contextmanager
def child(kind: str, limit_s: float) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, kind, str(limit_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop(number: signal.Signals) -> None:
    with child("polite", 30) as process:
        os.kill(process.pid, number)
        assert process.wait(10) == 0


def test_a_program_that_does_not_stop_is_cut_off() -> None:
    with child("deaf", 0.2) as process:
        os.kill(process.pid, signal.SIGTERM)
        _, told = process.communicate(timeout=10)
        assert process.returncode == 1
        assert "did not stop within 0.2 s" in told


def test_a_thread_that_never_returns_does_not_keep_the_process() -> None:
    with child("stuck", 0.2) as process:
        os.kill(process.pid, signal.SIGTERM)
        _, told = process.communicate(timeout=10)
        assert process.returncode == 1
        assert "ending the process" in told


def test_a_second_signal_cuts_off_at_once() -> None:
    with child("deaf", 50) as process:
        os.kill(process.pid, signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(10) == 1
