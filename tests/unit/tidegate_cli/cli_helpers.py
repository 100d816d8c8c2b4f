"""The `tidegate` command as a process."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    out: str
    err: str


async def tidegate_cli(*args: str, stdin: str = "", environ: Mapping[str, str] = {}) -> Ran:
    """Runs `tidegate ARGS` to its end."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tidegate_cli",
        *args,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=kept | dict(environ),
        start_new_session=True,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), LIMIT_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())
