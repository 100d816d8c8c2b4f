"""What the child may no longer do once it has its configuration: native code is about to read a file.

A seccomp filter refuses network, other programs, other processes' memory and signals to them, with EACCES.
It needs no privilege, works in containers, holds for all threads and cannot be taken off. /proc shows the
memory as files, which a filter cannot tell from others: Landlock closes these. Code that was made
to run by a hostile file still has the model, the prompts and the socket to the daemon; it cannot send them
anywhere else. A filter outlives exec, so it holds a server that is started under it as well.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER = 1
_FLAG_TSYNC = 1
# Landlock's calls, which have the same numbers everywhere, and the right to make block devices.
_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_MAKE_BLOCK = 1 << 11

# One instruction of classic BPF: code, jump if true, jump if false, constant.
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT, _FOURTH_ARGUMENT = 0, 4, 16, 24, 40
_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | errno.EACCES
# The x32 interface has the same architecture and numbers from here on.
_X32 = 0x40000000
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPES = 1, 1, 0xF


@dataclass(frozen=True, slots=True)
class _Calls:
    """Numbers of one architecture. `local` are needed by GPU drivers, `listening` by servers.

    `signals` take a process as their first argument: an abort sends one to its own.
    """

    audit: int
    seccomp: int
    socket: int
    execve: int
    local: tuple[int, ...]
    listening: tuple[int, ...]
    refused: tuple[int, ...]
    signals: tuple[int, ...]


# local: connect, socketpair (a datagram of a pair may be sent to any socket that has a path), execve,
# execveat.
# listening: bind, listen.
# refused: ptrace, process_vm_readv, process_vm_writev, bpf, unshare, setns, mount,
# io_uring_setup (its rings would open sockets unseen), pidfd_getfd, pidfd_open, pidfd_send_signal, tkill (for
# a thread of whatever process).
# signals: kill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo.
_OF_MACHINE = {
    "x86_64": _Calls(
        audit=0xC000003E,
        seccomp=317,
        socket=41,
        execve=59,
        local=(42, 53, 59, 322),
        listening=(49, 50),
        refused=(101, 310, 311, 321, 272, 308, 165, 425, 438, 434, 424, 200),
        signals=(62, 234, 129, 297),
    ),
    "aarch64": _Calls(
        audit=0xC00000B7,
        seccomp=277,
        socket=198,
        execve=221,
        local=(203, 199, 221, 281),
        listening=(200, 201),
        refused=(117, 270, 271, 280, 97, 268, 40, 425, 438, 434, 424, 130),
        signals=(129, 131, 138, 240),
    ),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def seal(*, memory_limit_bytes: int, helpers: bool, listens: bool = False, exec_key: int = 0) -> str:
    """Limits this process for good. Empty, or one sentence: why network and programs are not refused.

    The memory limit counts what the process may write, not a mapped file; 0 sets none. `helpers` leaves local
    sockets and other programs possible: GPUs' drivers use them, and CUDA finds no GPU where it may not listen
    on one. `listens` lets it serve at a local socket, and no more. `exec_key`, 64 random bits, is what
    `run_instead` may be called with afterwards.
    """
    if memory_limit_bytes > 0:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = memory_limit_bytes if hard == resource.RLIM_INFINITY else min(memory_limit_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    if not sys.platform.startswith("linux"):
        return f"there is no filter for {sys.platform}"
    calls = _OF_MACHINE.get(platform.machine())
    if calls is None or sys.maxsize < 2**32:
        return f"there is no filter for {platform.machine()}"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return f"no_new_privs is refused here ({errno.errorcode.get(ctypes.get_errno(), 'unknown')})"
    _leave_memory_alone(libc)
    code = _program(calls, helpers=helpers, listens=listens, exec_key=exec_key)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(buffer))
    if libc.syscall(calls.seccomp, _SET_MODE_FILTER, _FLAG_TSYNC, ctypes.byref(program)) != 0:
        return f"the kernel takes no filter ({errno.errorcode.get(ctypes.get_errno(), 'unknown')})"
    if _reaches_memory(os.getppid()):
        return "the kernel lets it write its parent's memory (it has no Landlock)"
    return ""


def _leave_memory_alone(libc: ctypes.CDLL) -> None:
    """This thread, and all that it starts, can no longer open what /proc shows of processes besides it.

    Every domain of Landlock's keeps to itself; it has to refuse something else, and block devices need a
    privilege anyway. Older kernels do not know the call.
    """
    rights = ctypes.c_uint64(_MAKE_BLOCK)
    rules = libc.syscall(_CREATE_RULESET, ctypes.byref(rights), ctypes.sizeof(rights), 0)
    if rules >= 0:
        libc.syscall(_RESTRICT_SELF, rules, 0)
        os.close(rules)


def _reaches_memory(pid: int) -> bool:
    try:
        os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR))
    except OSError:
        return False
    return True


def run_instead(path: str, command: Sequence[str], exec_key: int) -> NoReturn:
    """This process becomes the program at `path`. Raises OSError.

    The key goes where the kernel reads nothing and exec leaves nothing: the program cannot know it, and what
    it would start itself is refused.
    """
    calls = _OF_MACHINE.get(platform.machine())
    if calls is None or not sys.platform.startswith("linux"):
        os.execv(path, list(command))
    arguments = _pointers(os.fsencode(word) for word in command)
    environment = _pointers(b"=".join(pair) for pair in os.environb.items())
    libc = ctypes.CDLL(None, use_errno=True)
    number, key = ctypes.c_long(calls.execve), ctypes.c_uint64(exec_key)
    libc.syscall(number, os.fsencode(path), arguments, environment, key)
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)


def _pointers(words: Iterable[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    """As C passes a list of strings."""
    listed = [*words, None]
    return (ctypes.c_char_p * len(listed))(*listed)


def seal_helper(*, gpu: bool) -> None:
    """For a process that makes or measures files: no limit of memory; a missing filter is told on stderr."""
    exposed = seal(memory_limit_bytes=0, helpers=gpu)
    if exposed:
        sys.stderr.write(f"this process can reach the network and start programs: {exposed}\n")


def _program(calls: _Calls, *, helpers: bool, listens: bool, exec_key: int) -> bytes:
    """The filter: another architecture's calls, the listed ones, and signals to others are refused."""
    refused = [*calls.refused]
    refused += [] if helpers else calls.local
    refused += [] if helpers or listens else [*calls.listening, calls.socket]
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, calls.audit),
        (_RETURN, 0, 0, _REFUSE),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _REFUSE),
    ]
    if exec_key:
        lines += _only_with_key(calls.execve, exec_key)
    for number in refused:
        lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    for number in calls.signals:
        lines += [
            (_EQUAL, 0, 4, number),
            (_LOAD, 0, 0, _FIRST_ARGUMENT),
            (_EQUAL, 0, 1, os.getpid()),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _REFUSE),
        ]
    if helpers or listens:
        lines += _only_local(calls.socket, streams_only=not helpers)
    lines.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def _only_with_key(number: int, key: int) -> list[tuple[int, int, int, int]]:
    """Both halves of the fourth argument decide about the call."""
    return [
        (_EQUAL, 0, 6, number),
        (_LOAD, 0, 0, _FOURTH_ARGUMENT),
        (_EQUAL, 0, 3, key & 0xFFFFFFFF),
        (_LOAD, 0, 0, _FOURTH_ARGUMENT + 4),
        (_EQUAL, 0, 1, key >> 32),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]


def _only_local(number: int, *, streams_only: bool) -> list[tuple[int, int, int, int]]:
    """Sockets of other families are refused; datagrams as well, which need no connection to be sent."""
    return [
        (_EQUAL, 0, 7, number),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_EQUAL, 0, 4, _AF_UNIX),
        (_LOAD, 0, 0, _SECOND_ARGUMENT),
        (_AND, 0, 0, _SOCK_TYPES if streams_only else 0),
        (_EQUAL, 0, 1, _SOCK_STREAM if streams_only else 0),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
