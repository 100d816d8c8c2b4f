"""What can be told of GPUs without one: what llama.cpp is asked, and what is said where there is none."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp.engine import LlamaCppEngine
from serving.engines.llama_cpp.settings import LlamaCppSettings

CHILD = Path(__file__).with_name("llama_gpu_child.py")


async def test_what_the_engines_process_does_with_and_without_a_gpu(model_path: Path) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, str(CHILD), str(model_path), stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    output, _ = await asyncio.wait_for(child.communicate(), 60.0)
    assert json.loads(output) == {
        # Without layers on a GPU nothing else may be computed there either.
        "devices": {"0": "none", "5": "all", "-1": "all"},
        "gpus": ["NVIDIA RTX (Ada) 4000", "NVIDIA L4"],
        # 128 tokens in the millisecond that they take once the GPU has loaded what it runs.
        "prefill": 128_000,
        "as_llama_cpp": True,
        "biased": True,
    }


async def test_layers_for_a_gpu_that_is_not_there_are_refused(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Also where llama.cpp was built for one.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    engine = LlamaCppEngine(LlamaCppSettings(model_path=model_path, model="m", n_gpu_layers=-1))
    with pytest.raises(EngineUnavailable, match="n_gpu_layers is set, but llama"):
        await engine.start()
    await engine.stop(0.0)
