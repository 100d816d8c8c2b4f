"""A model of 1.5 billion random weights in Q4_0: memory-bound like the models that devices really serve.

The shape is that of a common 1.5B model (28 layers, 12 heads with 2 key-value heads, 151,936 x 1,536
embeddings are cut to the tokenizer's size); tokenizer and metadata come from the bundled model, so that it
can be prompted with text. Written with the `gguf` package, which is installed into a cache folder of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.common import CannotMeasure
from serving.engines.llama_cpp.bundled import bundled_model, cache_dir

_LOCK_FILE = Path(__file__).resolve().parents[2] / "requirements" / "bench.txt"


def random_model() -> Path:
    """The file, made once. Raises CannotMeasure."""
    home = cache_dir() / "bench-models"
    path = home / "random-1.5B.Q4_0.gguf"
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True)
        packages = home / "gguf-package"
        if not packages.exists():
            pip = [sys.executable, "-m", "pip", "install", "-q", "--require-hashes"]
            _run([*pip, "--target", str(packages), "-r", str(_LOCK_FILE)])
        script = Path(__file__).with_name("write_random_model.py")
        unfinished = path.with_suffix(".part")
        _run([sys.executable, str(script), str(packages), str(bundled_model()), str(unfinished)])
        unfinished.rename(path)
    return path


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotMeasure(f"the random model cannot be made: {done.stderr.strip()[-300:]}")
