"""The demo's model files: made by a child process at set-up, found again afterwards."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tidegate_cli.stack.configs import ModelFiles
from tidegate_cli.stack.process import ChildFailed, python_module

Say = Callable[[str], None]

EDGE, CLOUD = "Q4_0", "Q8_0"
# What a finished file's line of the preparing program has, and no other.
_RESULT = " MB, perplexity "


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What was measured of a file on this machine; None where nothing was."""

    quantization: str
    mbytes: float
    perplexity: float | None


def facts(path: Path) -> ModelFacts:
    """From the catalog entry beside the file."""
    entry = json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))
    return ModelFacts(entry["quantization"], entry["bytes"] / 1e6, entry.get("perplexity"))


async def prepared_models(say: Say = lambda line: None) -> ModelFiles:
    """Makes what is missing and tells of its progress. Raises ChildFailed."""
    # Imported here: a CLI that only lists nodes needs no engine code.
    from serving.engines.base import EngineUnavailable
    from serving.engines.llama_cpp.bundled import bundled_model, default_models_dir

    try:
        source = bundled_model()
    except EngineUnavailable as error:
        raise ChildFailed(f"{error}; `make demo` installs it") from error
    folder = default_models_dir()
    command = python_module(
        "serving.engines.llama_cpp.prepare", str(source), "--to", f"{EDGE},{CLOUD}", "--out", str(folder)
    )
    results = [line for line in await _run(command, say) if _RESULT in line]
    names = [line.partition(": ")[0] for line in results]
    if len(names) != 2:
        raise ChildFailed(f"preparing the models in {folder} did not say which files it made")
    return ModelFiles(edge=folder / names[0], cloud=folder / names[1])


async def _run(command: list[str], say: Say) -> list[str]:
    """The lines it wrote; those that tell of progress are passed on as they come."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        errors = asyncio.create_task(process.stderr.read())
        lines = []
        async for raw in process.stdout:
            lines.append(raw.decode(errors="replace").rstrip())
            if _RESULT not in lines[-1]:
                say(f"  {lines[-1]}")
        told = (await errors).decode(errors="replace").strip().splitlines()
        if await process.wait():
            raise ChildFailed(f"preparing the models failed: {told[-1] if told else process.returncode}")
        return lines
    finally:
        if process.returncode is None:
            # It ends its own helpers, and half-made files with them.
            process.terminate()
            await process.wait()
