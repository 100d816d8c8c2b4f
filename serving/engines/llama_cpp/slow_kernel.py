"""Quantizations that a processor has no fast kernel for: noticed at the load, told, and mended where asked.

llama.cpp rearranges the weights of some types for the processor when it loads them.
"""

from __future__ import annotations

from pathlib import Path

from serving.engines.llama_cpp.bundled import default_models_dir
from serving.engines.llama_cpp.native_task import Progress
from serving.engines.llama_cpp.prepare import prepare
from serving.engines.llama_cpp.protocol import Frame

# Types whose blocks llama.cpp multiplies without its fast kernels on common processors.
SLOW_TYPES = ("Q4_1", "Q5_1")
FAST_TYPE = "Q4_0"
# Q4_0 against Q4_1 on an x86 processor with AVX2, one and two threads.
EXPECTED_PREFILL_GAIN = 2.7


def is_slow(quantization: str, repacked_bytes: int) -> bool:
    """Whether weights of this type stayed as they lie in the file, though another type would be faster."""
    return quantization in SLOW_TYPES and repacked_bytes == 0


def lacks_fast_kernel(quantization: str, n_gpu_layers: int, ready: Frame) -> bool:
    """By what a child said when it was ready. A GPU has kernels of its own."""
    return n_gpu_layers == 0 and is_slow(quantization, int(ready["repacked_bytes"]))


def fast_copy(source: Path, model: str, threads: int, progress: Progress) -> Path:
    """The file's Q4_0 copy in the models folder, made once. Blocks. Raises EngineUnavailable."""
    (made,) = prepare(
        source, [FAST_TYPE], default_models_dir(), model=model, threads=threads, progress=progress
    )
    return made.path
