"""`python -m serving.engines.llama_server.launch SEAL COMMAND...`: becomes the command, sealed.

The command inherits all of it: it dies with the parent, ignores Ctrl-C, leaves no core dump, has a limit of
memory, and reaches no network. It may listen on a local socket; SEAL says whether it may do more.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import NoReturn

from serving.engines.llama_cpp.isolate import isolate
from serving.engines.llama_cpp.sandbox import run_instead, seal
from serving.engines.llama_server.seal import Seal

# As shells do, so that a wrong path can be told from a server that failed.
NOT_FOUND = 127
_KEY_BYTES = 8


def main(arguments: list[str]) -> int:
    wanted, command = Seal.of_argument(arguments[0]), arguments[1:]
    try:
        _become(wanted, command)
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error.strerror}\n")
    return NOT_FOUND


def _become(wanted: Seal, command: list[str]) -> NoReturn:
    """Raises OSError."""
    isolate(wanted.parent_pid)
    path = shutil.which(command[0]) or command[0]
    key = 0 if wanted.helpers else int.from_bytes(os.urandom(_KEY_BYTES))
    exposed = seal(
        memory_limit_bytes=wanted.memory_limit_bytes, helpers=wanted.helpers, listens=True, exec_key=key
    )
    os.write(wanted.exposed_fd, exposed.encode())
    os.close(wanted.exposed_fd)
    run_instead(path, command, key)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
