"""The demo's model files: made by a child process at set-up, found again afterwards."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

from tidegate_cli.stack.configs import ModelFiles
from tidegate_cli.stack.process import ChildFailed, python_module

QUANTIZATIONS = {"edge": "Q4_0", "cloud": "Q8_0"}


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


async def prepared_models() -> ModelFiles:
    """Makes what is missing, with its progress on our stdout. Raises ChildFailed."""
    # Imported here: a CLI that only lists nodes needs no engine code.
    from serving.engines.base import EngineUnavailable
    from serving.engines.llama_cpp.bundled import bundled_model, default_models_dir

    try:
        source = bundled_model()
    except EngineUnavailable as error:
        raise ChildFailed(str(error)) from error
    wanted = ",".join(QUANTIZATIONS.values())
    command = python_module(
        "serving.engines.llama_cpp.prepare", str(source), "--to", wanted, "--out", str(default_models_dir())
    )
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True
    )
    _, errors = await process.communicate()
    if process.returncode:
        lines = errors.decode(errors="replace").strip().splitlines()
        raise ChildFailed(f"preparing the models failed: {lines[-1] if lines else process.returncode}")
    found = {path.name.split(".")[-2]: path for path in default_models_dir().glob("SmolLM2-*.gguf")}
    return ModelFiles(edge=found[QUANTIZATIONS["edge"]], cloud=found[QUANTIZATIONS["cloud"]])
