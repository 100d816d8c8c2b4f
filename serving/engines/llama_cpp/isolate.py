"""What a child process does to itself before native code runs. Linux; elsewhere the parts that exist."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import types

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


def isolate(parent_pid: int) -> None:
    """No core dumps (they would hold prompts), no Ctrl-C (the parent decides), death with the parent.

    The parent-death signal is sent when the thread that started this process ends.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _report_without_values
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        # It died before the signal was asked for.
        os._exit(1)


def _report_without_values(
    kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
) -> None:
    """Where and what kind, never the message: it may quote a prompt."""
    place = ""
    while trace is not None:
        place = f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"
        trace = trace.tb_next
    sys.stderr.write(f"engine child: {kind.__name__} at {place}\n")
