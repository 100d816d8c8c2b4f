"""Native work of `prepare` in a process of its own: quantize one file, or measure one file's perplexity.

Called with one JSON argument; answers with JSON lines {"share": ...}, then {"done": ...} or {"refused": ...}.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from serving.engines.llama_cpp.isolate import isolate
from serving.engines.llama_cpp.native import C, Model, NativeError, start_backend
from serving.engines.llama_cpp.quality import perplexity
from serving.engines.llama_cpp.sandbox import seal_helper

_STEP = re.compile(rb"\[ *(\d+)/ *(\d+)\]")
# Work of minutes must not slow the daemon that serves beside it.
BACKGROUND = 10


def quantize(task: dict[str, Any]) -> None:
    """Writes the target. Raises NativeError."""
    quantization, target = task["quantization"], task["target"]
    name = "ALL_F32" if quantization == "F32" else f"MOSTLY_{quantization}"
    file_type = getattr(C, f"LLAMA_FTYPE_{name}", None)
    if file_type is None:
        raise NativeError(f"llama.cpp knows no quantization {quantization}")
    params = C.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = task["threads"]
    params.allow_requantize = True
    layers = (ctypes.c_int32 * (len(task["layers"]) + 1))(*task["layers"], -1)
    if task["layers"]:
        params.prune_layers = ctypes.cast(layers, ctypes.POINTER(ctypes.c_int32))
    if C.llama_model_quantize(task["source"].encode(), target.encode(), ctypes.byref(params)) != 0:
        raise NativeError(f"llama.cpp cannot quantize the file to {quantization}")
    if task["layers"]:
        _load(target)
    with open(target, "rb") as file:
        os.fsync(file.fileno())


def _load(path: str) -> None:
    """Not every architecture survives the loss of a layer: only what loads may be kept."""
    try:
        Model(path).close()
    except NativeError as error:
        raise NativeError("this architecture does not load without those layers") from error


def measure(path: str, text_path: str, threads: int) -> float:
    text = Path(text_path).read_text(encoding="utf-8")
    return perplexity(Model(path), text, threads=threads, progress=lambda share: _say({"share": share}))


@C.llama_log_callback  # type: ignore[untyped-decorator]
def _progress_of_log(_level: int, text: bytes, _data: object) -> None:
    """llama.cpp tells how far it is in its log only: `[  12/ 272] NAME ...`."""
    found = _STEP.match(text)
    if found:
        _say({"share": int(found[1]) / int(found[2])})


def _follow_log() -> None:
    C.llama_log_set(_progress_of_log, None)


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main(argument: str) -> int:
    task = json.loads(argument)
    isolate(task["parent_pid"])
    seal_helper(gpu=bool(C.llama_supports_gpu_offload()))
    start_backend(debug=task["debug"])
    try:
        if task["task"] == "quantize":
            _follow_log()
            os.nice(BACKGROUND)
            quantize(task)
            _say({"done": None})
        else:
            _say({"done": measure(task["path"], task["text"], task["threads"])})
    except NativeError as error:
        _say({"refused": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
