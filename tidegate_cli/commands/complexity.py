"""`tidegate complexity`"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from tidegate_cli.stack.process import python_module

STOP_S = 2.0


class ComplexityCommand:
    name = "complexity"
    help = 'judge prompts: {"prompt": ...} a line in, {"p_small_ok": ..., "difficulty": ..., ...} a line out'

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--model", type=Path, help="folder of a trained model; default: the shipped prior"
        )

    async def run(self, args: argparse.Namespace) -> int:
        options = [] if args.model is None else ["--model", str(args.model)]
        # It reads and writes for itself: nothing stands between its lines and whoever reads them.
        process = await asyncio.create_subprocess_exec(*python_module("gateway.analysis", *options))
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                async with asyncio.timeout(STOP_S):
                    await process.wait()
