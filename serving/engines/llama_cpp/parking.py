"""How many bytes of computed prefixes may be parked, found out when the model is loaded."""

from __future__ import annotations

import numpy as np

from serving.engines.llama_cpp.kv_state import KvBlock, NotCuttable, SavedState, join_blocks, parse_state
from serving.engines.llama_cpp.native import Context
from serving.engines.llama_cpp.protocol import ChildConfig

_PROBE_TOKENS = 4
# Of the memory that is free now; the rest is for everything else on the device.
_SHARE_OF_FREE = 0.125


def parking_budget(context: Context, config: ChildConfig) -> int:
    """As much again as the slots' own cache, where an eighth of the free memory allows it.

    0 when this model's states cannot be cut into blocks. Leaves the context empty.
    """
    token_bytes = bytes_per_token(context, config.slots)
    return min(token_bytes * config.slots * config.context_tokens, int(free_memory_bytes() * _SHARE_OF_FREE))


def bytes_per_token(context: Context, sequences: int) -> int:
    """Bytes of one token's keys and values; 0 unless cutting and joining gives the same state again."""
    count = _PROBE_TOKENS
    target = sequences - 1
    try:
        saved = _computed(context, count)
        parts = [saved.cut(0, 1), saved.cut(1, count)]
        if saved.tokens != count or not context.restore(target, join_blocks(parts)):
            return 0
        again = parse_state(context.save(target))
        same = (again.keys == saved.keys).all() and (again.values == saved.values).all()
        return saved.layout.token_bytes if same else 0
    except NotCuttable:
        return 0
    finally:
        context.clear()


def sample_block(context: Context, count: int) -> KvBlock:
    """A block of so many tokens as this context makes it. Leaves the context empty. Raises NotCuttable."""
    try:
        return _computed(context, count).cut(0, count)
    finally:
        context.clear()


def _computed(context: Context, count: int) -> SavedState:
    context.tokens[:count] = np.arange(count)
    context.positions[:count] = np.arange(count)
    context.sequence_ids[:count] = 0
    context.outputs[:count] = 0
    context.outputs[count - 1] = 1
    context.decode(count)
    return parse_state(context.save(0))


def free_memory_bytes() -> int:
    """What the kernel says can be used without swapping; 0 where it does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
