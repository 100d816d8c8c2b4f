"""Run as a child, as native code may crash: `llama_interrupt_child.py MODEL`. Prints what it saw as JSON."""

from __future__ import annotations

import json
import sys
import threading

import numpy as np

from serving.engines.llama_cpp.native import Context, Model, Tokens, start_backend

TOKENS = 1500


def step(context: Context, tokens: Tokens, start: int, sequence: int) -> bool:
    count = len(tokens)
    context.tokens[:count] = tokens
    context.positions[:count] = np.arange(start, start + count)
    context.sequence_ids[:count] = sequence
    context.outputs[:count] = 0
    context.outputs[count - 1] = 1
    return context.decode(count)


def main(path: str) -> None:
    start_backend(debug=False)
    model = Model(path)
    context = Context(model, sequences=2, context_tokens=2048, n_batch=2048, threads=1, kv_type="f16")
    text = model.tokenize(
        "a tide gate opens and shuts with the sea " * 200, add_special=True, parse_special=False
    )
    prompt = text[:TOKENS]
    seen: dict[str, bool] = {"before": step(context, prompt[:40], 0, 0)}
    timer = threading.Timer(0.01, context.interrupt)
    timer.start()
    seen["interrupted"] = step(context, prompt[40:], 40, 0)
    timer.join()
    seen["until_resumed"] = step(context, prompt[:4], 0, 1)
    context.resume()
    seen["cut"] = context.truncate(0, 40) and context.truncate(1, 0)
    seen["after"] = step(context, prompt[40:60], 40, 0)
    disturbed = context.logits(19).copy()
    seen["other"] = step(context, prompt[:40], 0, 1) and step(context, prompt[40:60], 40, 1)
    seen["same"] = bool(np.array_equal(disturbed, context.logits(19)))
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
