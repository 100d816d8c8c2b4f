"""What a managed server cannot do; each attack works in a process that is not sealed."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import managed_server
import pytest
from engine_contract import EngineContract, Recorder

from serving.engines.llama_server import LlamaServerEngine
from serving.engines.llama_server.seal import Seal

# `outside` and `log` are paths of sockets that others listen on, the second one for datagrams.
ATTACKS = {
    "an internet socket": "socket.socket(socket.AF_INET)",
    "an IPv6 socket": "socket.socket(socket.AF_INET6)",
    "a socket of the kernel's": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "a connection to a local server": "socket.socket(socket.AF_UNIX).connect(outside)",
    "a datagram to a local server": "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', log)",
    "another program": "os.execv('/bin/true', ['true'])",
    "a signal to another process": "os.kill(os.getppid(), 0)",
    "memory without end": "bytearray(2**30)",
}
OF_OTHER_SERVERS = ("a connection to a local server", "a datagram to a local server", "another program")
SCRIPT = """
import os, socket, sys
outside, log = sys.argv[2:]
try:
    exec(sys.argv[1])
except (PermissionError, MemoryError):
    sys.exit(7)
"""


def attack(folder: Path, name: str, seal: Seal | None, told: int) -> int:
    return run(folder, ATTACKS[name], seal, told)


def run(folder: Path, attempt: str, seal: Seal | None, told: int) -> int:
    outside, log = folder / "outside.sock", folder / "log.sock"
    command = [sys.executable, "-c", SCRIPT, attempt, str(outside), str(log)]
    launch = [sys.executable, "-m", "serving.engines.llama_server.launch"]
    if seal is not None:
        command = [*launch, seal.argument(), *command]
    return subprocess.run(command, timeout=30, check=False, pass_fds=[told]).returncode


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with (
        socket.socket(socket.AF_UNIX) as outside,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log,
    ):
        outside.bind(str(tmp_path / "outside.sock"))
        outside.listen()
        log.bind(str(tmp_path / "log.sock"))
        yield tmp_path


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_works_unsealed_and_fails_sealed(folder: Path, name: str) -> None:
    listens, told = os.pipe()
    try:
        sealed = Seal(os.getpid(), told, memory_limit_bytes=2**29)
        helped = Seal(os.getpid(), told, memory_limit_bytes=2**29, helpers=True)
        assert attack(folder, name, None, told) == 0
        assert attack(folder, name, sealed, told) == 7
        assert attack(folder, name, helped, told) == (0 if name in OF_OTHER_SERVERS else 7)
        os.close(told)
        assert os.read(listens, 99) == b""
    finally:
        os.close(listens)


@pytest.mark.parametrize("helpers", [False, True])
def test_no_server_opens_the_memory_of_the_node(folder: Path, helpers: bool) -> None:
    """Where Yama is, an unsealed one of an ordinary user's cannot either."""
    listens, told = os.pipe()
    try:
        seal = Seal(os.getpid(), told, helpers=helpers)
        assert run(folder, "open(f'/proc/{os.getppid()}/mem', 'r+b')", seal, told) == 7
    finally:
        os.close(listens)
        os.close(told)


def test_a_program_that_is_refused_once_is_refused_with_any_key(tmp_path: Path) -> None:
    """The key that let the server itself start is gone with what started it."""
    listens, told = os.pipe()
    again = (
        "import sys; from serving.engines.llama_cpp.sandbox import run_instead\n"
        "for key in (0, 1, 2**64 - 1):\n"
        "    try: run_instead('/bin/true', ['true'], key)\n"
        "    except PermissionError: continue\n"
        "sys.exit(7)\n"
    )
    launch = [sys.executable, "-m", "serving.engines.llama_server.launch"]
    command = [*launch, Seal(os.getpid(), told).argument(), sys.executable, "-c", again]
    try:
        assert subprocess.run(command, timeout=30, check=False, pass_fds=[told]).returncode == 7
    finally:
        os.close(listens)
        os.close(told)


@pytest.mark.parametrize("real", [False, True])
async def test_a_server_listens_at_a_private_path_and_nowhere_else(tmp_path: Path, real: bool) -> None:
    program = managed_server.built_llama_server()
    if real and program is None:
        pytest.skip("llama-server is built by `make bench-engine` only")
    changes = {"command": (), "program": str(program)} if real else {}
    engine = LlamaServerEngine(managed_server.settings(tmp_path, **changes))
    rec = Recorder(engine, await engine.start(), EngineContract.timeout_s)
    try:
        pid = engine.child_pid
        assert pid is not None
        private = require_sealed(pid, is_limited=real)
    finally:
        await rec.close()
    assert not private.exists()


def require_sealed(pid: int, *, is_limited: bool) -> Path:
    """The directory that the server listens in."""
    sockets = own_sockets(pid)
    assert sockets["tcp"] == sockets["tcp6"] == []
    (path,) = [Path(each) for each in sockets["unix"] if each]
    about = path.parent.stat()
    assert stat.S_IMODE(about.st_mode) == 0o700
    assert about.st_uid == os.getuid()
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert f"TMPDIR={path.parent}".encode() in environ
    status = Path(f"/proc/{pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)
    assert bool(re.search(r"Max data size +\d+ +\d+ ", limits)) == is_limited
    return path.parent


def own_sockets(pid: int) -> dict[str, list[str]]:
    """Of each kind the addresses, or paths, of the sockets that this process holds."""
    links = [os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()]
    mine = {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
    found = {}
    for kind, inode, address in (("tcp", 9, 1), ("tcp6", 9, 1), ("unix", 6, 7)):
        table = Path(f"/proc/{pid}/net/{kind}")
        rows = [line.split() for line in table.read_text().splitlines()[1:]] if table.exists() else []
        listening = [row for row in rows if row[inode] in mine]
        found[kind] = sorted({row[address] for row in listening if len(row) > address})
    return found
