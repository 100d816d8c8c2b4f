"""`python -m serving.engines.llama_server.launch PARENT_PID COMMAND...`: becomes the command.

The command inherits what isolate() set: it dies with the parent, ignores Ctrl-C and leaves no core dump.
"""

from __future__ import annotations

import os
import sys

from serving.engines.llama_cpp.isolate import isolate

# As shells do, so that a wrong path can be told from a server that failed.
NOT_FOUND = 127


def main(arguments: list[str]) -> int:
    parent_pid, *command = arguments
    isolate(int(parent_pid))
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error.strerror}\n")
    return NOT_FOUND


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
