"""Runs one piece of native work in a child process and follows it: a crash in there is one clear sentence.

The child (a module of this package) gets its task as one JSON argument and answers with JSON lines:
{"share": 0.4} as often as it likes, then {"done": RESULT} or {"refused": SENTENCE}.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp.process import child_environment

Progress = Callable[[str], None]
_SHOWN_STEP = 0.1
_WITHOUT_AMX = "-U__AMX_INT8__"


def run_task(module: str, task: dict[str, Any], what: str, progress: Progress) -> Any:
    """What the child answered. Blocks; a child never outlives its caller. Raises EngineUnavailable.

    `what` begins the lines given to `progress` and the sentences of errors.
    """
    task = task | {"parent_pid": os.getpid(), "debug": False}
    command = [sys.executable, "-m", module, json.dumps(task)]
    environment = child_environment(dict(os.environ), bounded_spin=False)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
    ) as process:
        try:
            return _follow(process, what, progress)
        finally:
            process.kill()


def _follow(process: subprocess.Popen[bytes], what: str, progress: Progress) -> Any:
    outcome: dict[str, Any] | None = None
    shown = 0.0
    for line in process.stdout or ():
        message = json.loads(line)
        if "share" not in message:
            outcome = message
        elif message["share"] >= min(1.0, shown + _SHOWN_STEP):
            shown = message["share"]
            progress(f"{what}: {shown:.0%}")
    status = process.wait()
    if outcome is None:
        how = f"signal {-status}" if status < 0 else f"status {status}"
        why = "the source file may be damaged"
        if status == -signal.SIGILL:
            why = (
                "llama.cpp has an instruction that this processor refuses: build it here, and if it was, "
                f"with CFLAGS and CXXFLAGS={_WITHOUT_AMX} (some compilers break its AMX code)"
            )
        raise EngineUnavailable(f"{what} crashed ({how}); {why}")
    if "refused" in outcome:
        raise EngineUnavailable(f"{what} failed: {outcome['refused']}")
    return outcome["done"]
