"""Native work of this package in a process of its own; the answers are those of native_task."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serving.engines.llama_cpp.isolate import isolate
from serving.engines.llama_cpp.load_log import LoadLog
from serving.engines.llama_cpp.native import C, Context, Model, NativeError, build_id, start_backend
from serving.engines.llama_cpp.prepare_child import BACKGROUND, quantize
from serving.engines.llama_cpp.quality import perplexity
from serving.engines.llama_cpp.sandbox import seal_helper
from serving.engines.llama_cpp.variants.rates import decode_step_ms, prefill_rate, random_prompt
from serving.engines.llama_cpp.variants.sweep import DECODE_STEPS, PROMPT_TOKENS, Sweep, sweep_prompt
from serving.engines.llama_cpp.variants.tasks import accuracy, questions_digest, read_questions

_DECODE_STEPS = 24
_PROMPT_TOKENS = 256
_POINT_S = 0.6


def score_without(task: dict[str, Any]) -> float:
    """Perplexity on a text after `layers` of the source were left out."""
    os.nice(BACKGROUND)
    target = Path(task["target"])
    try:
        quantize(task)
        return perplexity(Model(str(target)), task["text"], threads=task["threads"])
    finally:
        target.unlink(missing_ok=True)


def measure(task: dict[str, Any]) -> dict[str, object]:
    """What one file does here: the measured members of catalog.Figures."""
    slots, context_tokens = task["slots"], task["context_tokens"]
    log = LoadLog()
    began = time.perf_counter()
    model = Model(task["path"])
    context = _context(model, slots, context_tokens, task["threads"])
    load_ms = (time.perf_counter() - began) * 1000.0
    prompt = random_prompt(model.n_vocab, min(_PROMPT_TOKENS, context_tokens - _DECODE_STEPS - 1))
    prefill_rate(context, prompt[:16], chunk=16, repeats=1)
    figures: dict[str, object] = {
        "load_ms": load_ms,
        "repacked_bytes": log.repacked_bytes,
        "prefill_tokens_per_s": prefill_rate(context, prompt, chunk=256),
        "decode_1_tokens_per_s": 1000.0 / decode_step_ms(context, 1, depth=len(prompt), steps=_DECODE_STEPS),
    }
    step_ms = decode_step_ms(context, slots, depth=len(prompt), steps=_DECODE_STEPS)
    figures["decode_slots_tokens_per_s"] = 1000.0 * slots / step_ms
    questions = read_questions()
    figures["accuracy"] = accuracy(model, context, questions, lambda share: say({"share": share}))
    return figures | _memory() | {"accuracy_items": len(questions), "accuracy_text": questions_digest()}


def sweep(task: dict[str, Any]) -> dict[str, Any]:
    """Prefill and decode rates at each number of threads, and with which build."""
    sizes, threads, gpu_layers = sorted(task["sizes"]), task["threads"], task["gpu_layers"]
    log = LoadLog()
    model = Model(task["path"], n_gpu_layers=gpu_layers)
    log.close()
    tokens = PROMPT_TOKENS + DECODE_STEPS + 1
    context = _context(model, sizes[-1], tokens, max(threads), flash=gpu_layers != 0)
    prompt = sweep_prompt(model.n_vocab, tokens)
    measuring = Sweep(context, prompt, threads=threads, sizes=sizes, point_s=_POINT_S)
    told = 0
    for _ in measuring.steps():
        if len(measuring.curves) > told:
            told = len(measuring.curves)
            say({"share": told / len(threads)})
    return {"build": build_id(), "gpus": log.gpus, "curves": [asdict(curve) for curve in measuring.curves]}


def _context(model: Model, slots: int, context_tokens: int, threads: int, *, flash: bool = False) -> Context:
    return Context(
        model,
        sequences=slots,
        context_tokens=context_tokens,
        n_batch=512,
        threads=threads,
        kv_type="f16",
        flash=flash,
    )


def _memory() -> dict[str, int]:
    """Of this process, in bytes; zeros where the system does not tell."""
    sizes = {"Rss": 0, "Pss": 0}
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, rest = line.partition(":")
        if name in sizes:
            sizes[name] = int(rest.split()[0]) * 1024
    return {"rss_bytes": sizes["Rss"], "pss_bytes": sizes["Pss"]}


_TASKS = {"score_without": score_without, "measure": measure, "sweep": sweep}


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main(argument: str) -> int:
    task = json.loads(argument)
    isolate(task["parent_pid"])
    seal_helper(gpu=bool(C.llama_supports_gpu_offload()))
    start_backend(debug=task["debug"])
    try:
        say({"done": _TASKS[task["task"]](task)})
    except NativeError as error:
        say({"refused": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
