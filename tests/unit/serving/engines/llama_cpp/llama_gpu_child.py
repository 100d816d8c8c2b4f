"""Run as a child, as native code may crash: `llama_gpu_child.py MODEL`. Prints what it saw as JSON."""

from __future__ import annotations

import contextlib
import ctypes
import json
import sys
from typing import Any

import numpy as np

from serving.engines.llama_cpp.load_log import LoadLog
from serving.engines.llama_cpp.native import C, Context, Model, NativeError, start_backend
from serving.engines.llama_cpp.sampling import SamplerChain, SamplingDefaults
from serving.engines.llama_cpp.selftest import measure
from tidegate.routing.domain import Sampling

TOLD = (
    "llama_prepare_model_devices: using device CUDA0 (NVIDIA RTX (Ada) 4000) (0000:00:03.0) - 9 MiB free",
    "llama_prepare_model_devices: using device CUDA1 (NVIDIA L4) (unknown id) - 22500 MiB free",
    "load_tensors: CUDA0 model buffer size = 9.00 MiB",
)


def devices(layers: int) -> str:
    """Which devices a load is asked to use."""
    asked: list[Any] = []
    load, supports = C.llama_model_load_from_file, C.llama_supports_gpu_offload
    C.llama_model_load_from_file = lambda _path, params: asked.append(params)
    C.llama_supports_gpu_offload = lambda: True
    with contextlib.suppress(NativeError):
        Model("/none", n_gpu_layers=layers)
    C.llama_model_load_from_file, C.llama_supports_gpu_offload = load, supports
    listed = asked[0].devices
    if not listed:
        return "all"
    return "some" if ctypes.c_void_p.from_address(listed).value else "none"


def gpus_told() -> list[str]:
    log = LoadLog()
    for line in TOLD:
        log._take(2, line.encode(), None)
    log.close()
    return log.gpus


def greedy(model: Model, context: Context) -> dict[str, bool]:
    """Of the likeliest tokens, and of greedy chains that must look at more than these."""
    context.tokens[:4] = model.tokenize("The tide gate", add_special=True, parse_special=False)[:1].item()
    context.positions[:4], context.sequence_ids[:4], context.outputs[:4] = np.arange(4), 0, 1
    context.decode(4)

    def chosen(sampling: Sampling, entry: int) -> int:
        defaults, prompt = SamplingDefaults(0.8, 40, 0.95, 0.05), np.zeros(1, np.int32)
        chain = SamplerChain(model, sampling, defaults, prompt, 256)
        try:
            return chain.sample(context, entry, 0)
        finally:
            chain.close()

    def llama_cpps(entry: int) -> int:
        sampler = C.llama_sampler_init_greedy()
        token = C.llama_sampler_sample(sampler, context.handle, entry)
        C.llama_sampler_free(sampler)
        return int(token)

    tokens = [chosen(Sampling(temperature=0.0), entry) for entry in range(4)]
    banned = Sampling(temperature=0.0, logit_bias=((tokens[3], -100.0),))
    return {
        "as_llama_cpp": tokens == [llama_cpps(entry) for entry in range(4)],
        "biased": chosen(banned, 3) != tokens[3],
    }


class LazyContext:
    """Takes ten times as long for the first step of every size, as a GPU that loads what it runs."""

    def __init__(self) -> None:
        self.tokens = self.positions = self.sequence_ids = self.outputs = np.zeros(256, np.int32)
        self.now_s = 0.0
        self._known: set[int] = set()

    def clear(self) -> None:
        """Nothing is held."""

    def truncate(self, _sequence: int, _length: int) -> bool:
        return True

    def decode(self, count: int) -> bool:
        self.now_s += 0.001 if count in self._known else 0.010
        self._known.add(count)
        return True


def main(path: str) -> None:
    start_backend(debug=False)
    lazy: Any = LazyContext()
    seen: dict[str, object] = {
        "devices": {str(layers): devices(layers) for layers in (0, 5, -1)},
        "gpus": gpus_told(),
        "prefill": round(measure(lazy, 1, 100, lambda: lazy.now_s).prefill_tokens_per_s),
    }
    model = Model(path)
    context = Context(model, sequences=1, context_tokens=256, n_batch=32, threads=1, kv_type="f16")
    print(json.dumps(seen | greedy(model, context)))


if __name__ == "__main__":
    main(sys.argv[1])
