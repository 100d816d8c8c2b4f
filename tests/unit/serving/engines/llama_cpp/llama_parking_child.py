"""Run as a child, as native code may crash: `llama_parking_child.py MODEL`. Prints what it saw as JSON.

Both ways in which values lie in the cache: a state in blocks is joined into another sequence, and both go on.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from serving.engines.llama_cpp.kv_state import join_blocks, parse_state
from serving.engines.llama_cpp.native import Context, Model, Tokens, start_backend
from serving.engines.llama_cpp.parking import bytes_per_token

SHARED = 48


def step(context: Context, tokens: Tokens, start: int, sequence: int) -> bytes:
    """The logits after the last of them."""
    count = len(tokens)
    context.tokens[:count] = tokens
    context.positions[:count] = np.arange(start, start + count)
    context.sequence_ids[:count] = sequence
    context.outputs[:count] = 0
    context.outputs[count - 1] = 1
    assert context.decode(count)
    return context.logits(count - 1).tobytes()


def main(path: str) -> None:
    start_backend(debug=False)
    model = Model(path)
    text = "a tide gate opens and shuts with the sea, a lock gate with the boats, " * 3
    prompt = model.tokenize(text, add_special=True, parse_special=False)
    seen: dict[str, object] = {}
    for flash in (False, True):
        context = Context(
            model, sequences=2, context_tokens=256, n_batch=64, threads=1, kv_type="f16", flash=flash
        )
        token_bytes = bytes_per_token(context, 2)
        step(context, prompt[:SHARED], 0, 0)
        saved = parse_state(context.save(0))
        blocks = [saved.cut(start, start + 16) for start in range(0, SHARED, 16)]
        restored = context.restore(1, join_blocks(blocks))
        goes_on = [step(context, prompt[SHARED : SHARED + 8], SHARED, sequence) for sequence in (0, 1)]
        seen["flash" if flash else "plain"] = {
            "token_bytes": token_bytes,
            "transposed": saved.layout.transposed,
            "restored": restored,
            "same": goes_on[0] == goes_on[1],
        }
        context.close()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
