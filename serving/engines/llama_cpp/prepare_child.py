"""Native work of `prepare` in a process of its own: quantize one file, or measure one file's perplexity.

Called with one JSON argument; answers with JSON lines {"share": ...}, then {"done": ...} or {"refused": ...}.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

from serving.engines.llama_cpp.isolate import isolate
from serving.engines.llama_cpp.native import C, Model, NativeError, start_backend
from serving.engines.llama_cpp.quality import perplexity


def quantize(source: str, target: str, quantization: str, threads: int) -> None:
    """Writes `target`. Raises NativeError."""
    file_type = getattr(C, f"LLAMA_FTYPE_MOSTLY_{quantization}", None)
    if file_type is None:
        raise NativeError(f"llama.cpp knows no quantization {quantization}")
    params = C.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = threads
    params.allow_requantize = True
    if C.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)) != 0:
        raise NativeError(f"llama.cpp cannot quantize the file to {quantization}")
    with open(target, "rb") as file:
        os.fsync(file.fileno())


def measure(path: str, text_path: str, threads: int) -> float:
    text = Path(text_path).read_text(encoding="utf-8")
    return perplexity(Model(path), text, threads=threads, progress=lambda share: _say({"share": share}))


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main(argument: str) -> int:
    task = json.loads(argument)
    isolate(task["parent_pid"])
    start_backend(debug=task["debug"])
    try:
        if task["task"] == "quantize":
            quantize(task["source"], task["target"], task["quantization"], task["threads"])
            _say({"done": None})
        else:
            _say({"done": measure(task["path"], task["text"], task["threads"])})
    except NativeError as error:
        _say({"refused": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
