"""The one door to onnxruntime: what a small graph says of a prompt.

Graph contract (metadata `tidegate.features` must name FEATURE_SET): inputs `words` int64[m], `ids` int64[n]
(buckets of words, and of words and pairs), `scale` float[1] (1 / sqrt(n)) and `dense` float[k]; outputs
`difficulty` float[1] and `p_small_ok` float[1]. Whoever fits a better model keeps to it: docs/complexity.md.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort

from gateway.analysis.features import BUCKETS, DENSE_NAMES, buckets_of, capped, dense, words_of

PRIOR_PATH = Path(__file__).with_name("prior.onnx")
FEATURE_SET = f"words-v2:{BUCKETS}:{len(DENSE_NAMES)}"
MAX_MODEL_BYTES = 2 * 1024 * 1024
FINGERPRINT_CHARS = 16
_OUTPUTS = ["difficulty", "p_small_ok"]


class ModelUnusable(Exception):
    """The difficulty model cannot be used; the message says which file and why."""


class Judgement(NamedTuple):
    """Both in [0, 1]. `difficulty` orders prompts by how much a larger model is needed.

    `p_small_ok` is the same order as odds that the smaller model of the labels answers well.
    """

    difficulty: float
    p_small_ok: float


class DifficultyModel:
    """A loaded graph. Single-threaded: at this size a thread pool only adds jitter and memory."""

    def __init__(self, path: Path | None = None) -> None:
        """Loads the shipped prior, or the model at `path`, a file or its folder. Raises ModelUnusable."""
        self._path = path or PRIOR_PATH
        if self._path.is_dir():
            self._path /= "model.onnx"
        data = _read(self._path)
        # Whose difficulties these are: what is certified up to one of them holds for this model alone.
        self.fingerprint = hashlib.sha256(data).hexdigest()[:FINGERPRINT_CHARS]
        self._session = _load(self._path, data)
        features = self._session.get_modelmeta().custom_metadata_map.get("tidegate.features", "")
        if features != FEATURE_SET:
            raise ModelUnusable(
                f"{self._path}: made for features {features!r}, this gateway has {FEATURE_SET!r}"
            )

    def difficulty(self, text: str, *, total_chars: int, turns: int) -> float:
        """Of the text that asks; `total_chars` and `turns` describe the conversation around it."""
        return self.judge(text, total_chars=total_chars, turns=turns).difficulty

    def judge(self, text: str, *, total_chars: int, turns: int) -> Judgement:
        """Difficulty and odds; a graph that gives no number counts as "hard, and surely not good"."""
        head_and_tail = capped(text)
        words = words_of(head_and_tail)
        single, ids = buckets_of(words)
        numbers = dense(head_and_tail, words, total_chars=total_chars, turns=turns)
        difficulty, p_small_ok = self._session.run(
            _OUTPUTS,
            {
                "words": single,
                "ids": ids,
                "scale": np.array([1.0 / math.sqrt(len(ids))], dtype=np.float32),
                "dense": np.array(numbers, dtype=np.float32),
            },
        )
        return Judgement(_share(difficulty[0], 1.0), _share(p_small_ok[0], 0.0))


def _share(value: float, otherwise: float) -> float:
    return min(max(float(value), 0.0), 1.0) if math.isfinite(value) else otherwise


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelUnusable(f"{path}: {error.strerror or error}") from error
    if len(data) > MAX_MODEL_BYTES:
        raise ModelUnusable(f"{path}: {len(data)} bytes, at most {MAX_MODEL_BYTES} are allowed")
    return data


def _load(path: Path, data: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises many unrelated types for a bad file
        raise ModelUnusable(f"{path}: not a usable ONNX model") from error
