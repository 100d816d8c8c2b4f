"""What happens to a managed server: killed, stopped, missing, orphaned."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import managed_server
import pytest
from engine_contract import EngineContract, Recorder

from serving.engine_settings import EngineSettings, build_engine
from serving.engines.base import EngineRefused, EngineUnavailable
from serving.engines.llama_server import LlamaServerEngine
from serving.engines.llama_server.process import ServerProcess
from serving.settings import SettingsError
from tidegate.routing.domain import Cause, Failure, FinishReason

CONTRACT = EngineContract()


async def test_a_start_without_file_descriptors_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> tuple[int, int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "pipe", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        await ServerProcess.spawn(lambda _: ["true"], memory_limit_bytes=0, helpers=True, echo=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("sign", "cause"), [(signal.SIGKILL, Cause.ENGINE_CRASHED), (signal.SIGSTOP, Cause.ENGINE_HUNG)]
)
async def test_a_dead_or_silent_server_is_told_and_started_again(
    tmp_path: Path, sign: signal.Signals, cause: Cause
) -> None:
    engine = LlamaServerEngine(managed_server.settings(tmp_path, hang_timeout_s=0.8))
    rec = Recorder(engine, await engine.start(), 30.0)
    works = [CONTRACT.work(rec.info, max_tokens=900) for _ in range(3)]
    for work in works:
        engine.submit(work)
    await rec.until(lambda: rec.count(works[0].key) > 2)
    first = engine.child_pid
    assert first is not None
    os.kill(first, sign)
    for work in works:
        finish = await rec.finish(work.key)
        assert isinstance(finish.result, Failure)
        assert finish.result.cause is cause
    assert not engine.load().ready
    with pytest.raises(EngineRefused):
        engine.submit(CONTRACT.work(rec.info))
    await rec.until_load(lambda: engine.load().ready)
    again = CONTRACT.work(rec.info)
    assert (await CONTRACT.run(rec, again)).result is FinishReason.LENGTH
    second = engine.child_pid
    await rec.close()
    assert first != second is not None
    for pid in (first, second):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            ("/no/such/server", "{socket}"),
            "`/no/such/server` ended with status 127 .*: cannot run /no/such/server",
        ),
        (("sh", "-c", "echo out of luck; exit 3", "{socket}"), "`sh` ended with status 3 .*: out of luck"),
    ],
)
async def test_a_server_that_does_not_start_is_named_with_its_last_words(
    tmp_path: Path, command: tuple[str, ...], words: str
) -> None:
    engine = LlamaServerEngine(managed_server.settings(tmp_path, command=command))
    with pytest.raises(EngineUnavailable, match=words):
        await engine.start()
    await engine.stop(0.0)


async def test_one_that_never_answers_is_given_up_and_ended(tmp_path: Path) -> None:
    command = ("sh", "-c", f"echo $$ > {tmp_path}/pid; sleep 60", "{socket}")
    engine = LlamaServerEngine(managed_server.settings(tmp_path, command=command, start_timeout_s=4.0))
    with pytest.raises(EngineUnavailable, match="cannot be used"):
        await engine.start()
    await engine.stop(0.0)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_server_dies_with_its_node(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "serving.engines.llama_server.launch"]
    script = (
        "import os, subprocess, sys, time\n"
        "from serving.engines.llama_server.seal import Seal\n"
        "_, told = os.pipe()\n"
        f"command = {launch!r} + [Seal(os.getpid(), told).argument(), 'sleep', '60']\n"
        "child = subprocess.Popen(command, pass_fds=[told], start_new_session=True)\n"
        "while os.readlink(f'/proc/{child.pid}/exe').endswith('sleep') is False: time.sleep(0.01)\n"
        "print(child.pid, flush=True)\n"
        "os._exit(0)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=20, check=True)
    pid, give_up = int(ran.stdout), time.monotonic() + 5.0
    while time.monotonic() < give_up:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise AssertionError("the server outlived its node")


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"program": "/no/such/server"}, "engine.llama_server.program: there is no program /no/such/server"),
        ({"command": ["server", "{socket}", "{prot}"]}, "'prot' is no known placeholder"),
        ({"command": ["server", "--port", "8080"]}, "no word of it says {socket}"),
    ],
)
def test_wrong_settings_are_named(section: dict[str, object], words: str) -> None:
    settings = EngineSettings.model_validate({"kind": "llama_server", "llama_server": section})
    with pytest.raises(SettingsError, match=words):
        build_engine(settings)


def test_the_digest_follows_what_the_server_computes_with_and_not_where(tmp_path: Path) -> None:
    def digest(**changes: object) -> str:
        return managed_server.settings(tmp_path, command=(), **changes).replay_digest("sha256:1", "b1")

    assert digest() == digest(model_path=Path("elsewhere.gguf"), program="/opt/llama-server", slots=3)
    assert digest() != digest(kv_type="q8_0")
    assert digest() != digest(options=("--lora", "a.gguf"))
