"""What a sealed process cannot do; each attack works in a process that is not sealed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.engines.llama_cpp.crashes import Crashes
from serving.engines.llama_cpp.process import child_environment
from serving.engines.llama_cpp.scratch import Scratch

ATTACKS = {
    "an internet socket": "socket.socket(socket.AF_INET)",
    "an IPv6 socket": "socket.socket(socket.AF_INET6)",
    "a local socket": "socket.socket(socket.AF_UNIX)",
    "a listening local socket": "local.bind('\\0tidegate'); local.listen()",
    "a connection of a socket made before": "before.connect(listener.getsockname())",
    "a socket made by a thread that ran before": "ask.set(); answered.wait(); raise_(answer[0])",
    "another program": "os.execv('/bin/true', ['true'])",
    "a signal to another process": "os.kill(victim, 0)",
    "a signal to another process's thread": "signal.pidfd_send_signal(os.pidfd_open(victim), 0)",
    "a signal to its whole group": "os.killpg(0, 0)",
    "a datagram to a local socket by way of a pair": "datagram()",
    "the memory of another process": "open(f'/proc/{other_pid}/mem', 'r+b').close()",
    "memory without end": "bytearray(2**30)",
}
ATTACK = """
import os, signal, socket, sys, threading
victim = os.getppid()
waits, ends = os.pipe()
other_pid = os.fork()
if other_pid == 0:
    os.close(ends); os.read(waits, 1); os._exit(0)
from serving.engines.llama_cpp.sandbox import seal
before, listener = socket.socket(), socket.create_server(("127.0.0.1", 0))
local = socket.socket(socket.AF_UNIX)
ask, answered, answer = threading.Event(), threading.Event(), []
def other():
    ask.wait()
    try: answer.append(socket.socket() and None)
    except OSError as error: answer.append(error)
    answered.set()
threading.Thread(target=other, daemon=True).start()
def raise_(error):
    if error: raise error
def datagram():
    a, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    a.sendto(b"prompt", named.getsockname())
    assert named.recv(9) == b"prompt"
named = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
named.bind(b"\\0tidegate-test-%d" % os.getpid())
if sys.argv[1] != "open":
    exposed = seal(memory_limit_bytes=2**29, helpers=sys.argv[1] == "gpu")
    assert not exposed, exposed
try:
    exec(sys.argv[2])
except (PermissionError, MemoryError):
    sys.exit(7)
"""


def attack(how: str, name: str) -> int:
    command = [sys.executable, "-c", ATTACK, how, ATTACKS[name]]
    return subprocess.run(command, timeout=30, check=False).returncode


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_works_unsealed_and_fails_sealed(name: str) -> None:
    assert attack("open", name) == 0
    assert attack("sealed", name) == 7


def test_a_sealed_process_can_still_abort_and_signal_itself() -> None:
    seal = "from serving.engines.llama_cpp.sandbox import seal; seal(memory_limit_bytes=0, helpers=False); "
    for how in ("os.abort()", "os.kill(os.getpid(), 6)", "signal.pthread_kill(threading.get_ident(), 6)"):
        script = f"import os, signal, threading; {seal}{how}"
        assert subprocess.run([sys.executable, "-c", script], timeout=30, check=False).returncode == -6


@pytest.mark.parametrize("module", ["prepare_child", "variants.child"])
def test_helpers_seal_themselves_before_they_read_a_file(module: str) -> None:
    script = (
        "import json, os, sys\n"
        f"from serving.engines.llama_cpp import {module.partition('.')[0]}\n"
        f"from serving.engines.llama_cpp.{module} import main\n"
        "task = {'parent_pid': os.getppid(), 'debug': False, 'task': 'none', 'path': '/none'}\n"
        "try: main(json.dumps(task))\n"
        "except KeyError: pass\n"
        "try: os.execv('/bin/true', ['true'])\n"
        "except PermissionError: sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], timeout=60, check=False, capture_output=True)
    assert done.returncode == 7, done.stderr


def test_a_gpus_driver_keeps_local_sockets_and_nothing_else_gets_out() -> None:
    assert attack("gpu", "a local socket") == 0
    # CUDA's initialization fails where it cannot.
    assert attack("gpu", "a listening local socket") == 0
    assert attack("gpu", "an internet socket") == 7
    assert attack("gpu", "the memory of another process") == 7


def test_an_engines_process_has_one_thread_when_it_is_sealed() -> None:
    """Those that numpy would start when it is imported could still open another process's memory."""
    script = "import os, serving.engines.llama_cpp.child; print(len(os.listdir('/proc/self/task')))"
    environment = child_environment(dict(os.environ), bounded_spin=False)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=True)
    assert done.stdout == b"1\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become an ordinary user")
def test_an_ordinary_user_can_seal_as_well() -> None:
    script = "import os; from serving.engines.llama_cpp.sandbox import seal; os.setuid(65534); "
    script += "print(seal(memory_limit_bytes=0, helpers=False))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_scratch_is_private_and_what_a_killed_owner_left_goes_at_the_next_start(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from serving.engines.llama_cpp.scratch import Scratch\n"
    )
    script += "s = Scratch.make(Path(sys.argv[1])); (s.path / 'prompt').touch(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    assert left.stat().st_mode & 0o077 == 0
    first, second = Scratch.make(tmp_path), Scratch.make(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([first.path, second.path])
    first.remove()
    first.remove()
    assert list(tmp_path.iterdir()) == [second.path]
    second.remove()


def test_ends_without_an_answer_lead_to_quarantine_and_steps_alone_do_not_help() -> None:
    crashes = Crashes(longest_pause_s=2.0, quarantine_after=3, quarantine_s=600.0)
    for _ in range(2):
        crashes.step()
        assert crashes.ended() == (0.0, False)
    crashes.step()
    assert crashes.ended() == (600.0, True)
    assert crashes.ended() == (600.0, True)
    crashes.answer()
    crashes.step()
    assert crashes.ended() == (0.0, False)
    assert crashes.ended() == (0.5, False)


def test_without_quarantine_pauses_only_grow() -> None:
    crashes = Crashes(longest_pause_s=2.0, quarantine_after=0, quarantine_s=600.0)
    assert [crashes.ended()[0] for _ in range(5)] == [0.0, 0.5, 1.0, 2.0, 2.0]
