from __future__ import annotations

import numpy as np
import pytest
from llama_fake_memory import LAYOUT, TRANSPOSED, block, tokens

from serving.engines.llama_cpp.kv_state import NotCuttable, StateLayout, join_blocks, parse_state

both = pytest.mark.parametrize("layout", [LAYOUT, TRANSPOSED], ids=["rows", "transposed"])


@both
def test_cut_and_joined_it_is_the_same_state(layout: StateLayout) -> None:
    values = tokens(*range(70_000, 70_010))
    whole = join_blocks([block(values, layout)])
    saved = parse_state(whole)
    assert saved.tokens == 10
    assert saved.layout == layout
    parts = [saved.cut(0, 3), saved.cut(3, 4), saved.cut(4, 10)]
    assert join_blocks(parts).tolist() == whole.tolist()
    assert sum(part.nbytes for part in parts) == 10 * layout.token_bytes
    assert (parts[2].values == block(values[4:], layout).values).all()


def test_transposed_values_lie_channel_by_channel() -> None:
    state = join_blocks([block(tokens(0x10002, 0x30004), TRANSPOSED)])
    # Before the last two streams, which are empty: the second layer.
    assert state[-16 - 8 : -8].view("<i2").tolist() == [2, 4, 1, 3, 0, 0, 0, 0]


@both
def test_a_cut_is_a_copy(layout: StateLayout) -> None:
    state = join_blocks([block(tokens(1, 2), layout)])
    part = parse_state(state).cut(0, 1)
    state[:] = 0
    assert part.keys[0].view("<i4").tolist() == [1]
    assert part.values.any()


def test_anything_else_is_refused() -> None:
    state = join_blocks([block(tokens(1, 2, 3))])
    cases = [state[:0], state[:-1], np.append(state, np.uint8(0))]
    for at in (16 + 4, 16, 16 + 36, 16 + 36 + 8 + 5, 16 + 36 + 8 + 12 + 12):
        # Cells per row, position, transposed, row size, the second layer's head.
        broken = state.copy()
        broken[at] ^= 0x7F
        cases.append(broken)
    for case in cases:
        with pytest.raises(NotCuttable):
            parse_state(case)


@both
def test_random_bytes_never_crash_the_parser(layout: StateLayout) -> None:
    rng = np.random.default_rng(1)
    state = join_blocks([block(tokens(1, 2, 3), layout)])
    for _ in range(500):
        broken = state.copy()
        broken[rng.integers(0, len(state), 4)] = rng.integers(0, 256, 4)
        try:
            parse_state(broken)
        except NotCuttable:
            continue
