"""Which attention is computed with, and that a parked state is the same state in either."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from serving.engines.llama_cpp.attention import Attention, scores_bytes, step_tokens, uses_flash

CHILD = Path(__file__).with_name("llama_parking_child.py")
MIB = 2**20


@pytest.mark.parametrize(
    ("wanted", "kv_type", "gpu", "flash"),
    [
        ("auto", "f16", 0, False),
        ("auto", "f16", 8, True),
        ("auto", "f16", -1, True),
        ("on", "f16", 0, True),
        ("off", "f16", 8, False),
        # llama.cpp refuses a quantized cache without it.
        ("off", "q8_0", 0, True),
    ],
)
def test_flash_attention_where_it_is_faster_or_needed(
    wanted: Attention, kv_type: str, gpu: int, flash: bool
) -> None:
    assert uses_flash(wanted, kv_type, gpu) is flash


def test_long_contexts_have_smaller_steps_so_that_scores_stay_bounded() -> None:
    assert step_tokens(2048, 9, 2048, flash=False) == 512
    assert step_tokens(100, 9, 2048, flash=False) == 100
    long = step_tokens(512, 32, 8192, flash=False)
    assert long < 512
    assert scores_bytes(long, 32, 8192) <= 128 * MIB
    assert step_tokens(512, 32, 8192, flash=True) == 512
    assert step_tokens(512, 128, 2**20, flash=False) == 64


async def test_a_state_in_blocks_goes_on_byte_for_byte_in_either(model_path: Path) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, str(CHILD), str(model_path), stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    output, _ = await asyncio.wait_for(child.communicate(), 60.0)
    same = {"token_bytes": 30 * 2 * 192 * 2, "restored": True, "same": True}
    assert json.loads(output) == {"plain": same | {"transposed": True}, "flash": same | {"transposed": False}}
