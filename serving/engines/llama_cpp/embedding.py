"""Embeddings in the engine's child: a context and a thread of their own, made when they are first asked for.

Streams go on beside them: the thread runs at low priority and computes on one core at most. Short texts
share a step. A vector is pooled over its tokens and made as long as 1.
"""

from __future__ import annotations

import base64
import ctypes
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.engines.llama_cpp.native import C, Model, NativeError, Tokens
from serving.engines.llama_cpp.protocol import ChildConfig, Frame
from tidegate.routing.domain import Cause

Vector = npt.NDArray[np.float32]

_SEQUENCES = 16
# llama.cpp also computes the logits of every token that is pooled: whole texts at once would cost hundreds of
# megabytes. Fewer than 64 tokens are computed row by row.
_STEP_TOKENS = 64
_NICE = 10


class EmbeddingContext:
    """Embeds up to 16 texts of `tokens` tokens together, with a model that reads forward."""

    def __init__(self, model: Model, *, tokens: int, pooling: str) -> None:
        params = C.llama_context_default_params()
        params.n_ctx = tokens
        params.n_batch = params.n_ubatch = _STEP_TOKENS
        params.n_seq_max = _SEQUENCES
        params.n_threads = params.n_threads_batch = 1
        params.embeddings = True
        params.pooling_type = C.LLAMA_POOLING_TYPE_NONE
        # One cache for all, so that a single text may use all of it.
        params.kv_unified = True
        self._pooling = pooling
        self._handle = C.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise NativeError(f"no memory to embed {tokens} tokens")
        self._size: int = C.llama_model_n_embd(model.handle)
        self._batch = C.llama_batch_init(_STEP_TOKENS, 0, 1)

    def embed(self, texts: Sequence[Tokens]) -> list[Vector]:
        """Raises NativeError."""
        C.llama_memory_clear(C.llama_get_memory(self._handle), True)
        sums = np.zeros((len(texts), self._size), np.float64)
        places = [(text, place) for text, tokens in enumerate(texts) for place in range(len(tokens))]
        for first in range(0, len(places), _STEP_TOKENS):
            step = places[first : first + _STEP_TOKENS]
            self._compute(texts, step)
            for entry, (text, place) in enumerate(step):
                if self._is_pooled(place, len(texts[text])):
                    sums[text] += self._row(entry)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        return list((sums / np.maximum(lengths, 1e-12)).astype("<f4"))

    def _is_pooled(self, place: int, length: int) -> bool:
        if self._pooling == "mean":
            return True
        return place == (0 if self._pooling == "cls" else length - 1)

    def _compute(self, texts: Sequence[Tokens], step: Sequence[tuple[int, int]]) -> None:
        batch = self._batch
        for entry, (text, place) in enumerate(step):
            batch.token[entry], batch.pos[entry] = int(texts[text][place]), place
            batch.n_seq_id[entry], batch.seq_id[entry][0] = 1, text
            batch.logits[entry] = 1
        batch.n_tokens = len(step)
        if C.llama_decode(self._handle, batch) != 0:
            raise NativeError(f"llama.cpp cannot embed {len(step)} tokens")

    def _row(self, entry: int) -> Vector:
        pointer = C.llama_get_embeddings_ith(self._handle, entry)
        if not pointer:
            raise NativeError("llama.cpp gave no embedding")
        return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (self._size,))


class Embedder:
    """Takes works from the reader's thread and sends their vectors in frames of the parent's protocol."""

    def __init__(self, model: Model, config: ChildConfig, send: Callable[[Frame], None]) -> None:
        self._model = model
        self._pooling = config.pooling
        self._limit = min(config.embedding_tokens, model.context_train)
        self._send = send
        self._context: EmbeddingContext | None = None
        self._waiting: queue.SimpleQueue[tuple[int, list[str]]] = queue.SimpleQueue()
        self._cancelled: set[int] = set()
        self._lock = threading.Lock()
        self._open: set[int] = set()

    def start(self) -> None:
        threading.Thread(target=self._run, name="embed", daemon=True).start()

    def put(self, sid: int, texts: list[str]) -> None:
        with self._lock:
            self._open.add(sid)
        self._waiting.put((sid, texts))

    def cancel(self, sid: int) -> None:
        """Nothing more is computed for it after the step that runs."""
        with self._lock:
            if sid in self._open:
                self._cancelled.add(sid)

    def _run(self) -> None:
        if hasattr(os, "setpriority"):
            # Of this thread alone, on Linux.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while True:
            sid, texts = self._waiting.get()
            try:
                self._work(sid, texts)
            except NativeError as error:
                self._send(_failed(sid, Cause.INTERNAL, str(error)))
            except Exception:  # noqa: BLE001 - a defect must not end this thread, and all embedding with it
                self._send(_failed(sid, Cause.INTERNAL, "the texts could not be embedded"))
            finally:
                with self._lock:
                    self._open.discard(sid)
                    self._cancelled.discard(sid)

    def _work(self, sid: int, texts: list[str]) -> None:
        if sid in self._cancelled:
            return
        tokens = [self._model.tokenize(text, add_special=True, parse_special=False) for text in texts]
        for number, each in enumerate(tokens):
            if not 0 < len(each) <= self._limit:
                detail = f"input {number} has {len(each)} tokens, the limit is 1 to {self._limit}"
                cause = Cause.CONTEXT_LENGTH if len(each) else Cause.INVALID_INPUT
                self._send(_failed(sid, cause, detail))
                return
        if self._context is None:
            self._context = EmbeddingContext(self._model, tokens=self._limit, pooling=self._pooling)
        first = counted = 0
        for group in groups(tokens, self._limit):
            if sid in self._cancelled:
                return
            vectors = self._context.embed(group)
            counted += sum(map(len, group))
            done = first + len(group) == len(tokens)
            self._send(vectors_frame(sid, first, vectors, tokens=counted, done=done))
            first += len(group)


def groups(texts: Sequence[Tokens], limit: int) -> Iterator[Sequence[Tokens]]:
    """Neighbours that fit one step together."""
    first = size = 0
    for number, tokens in enumerate(texts):
        if number > first and (size + len(tokens) > limit or number - first == _SEQUENCES):
            yield texts[first:number]
            first, size = number, 0
        size += len(tokens)
    yield texts[first:]


def vectors_frame(sid: int, first: int, vectors: Sequence[Vector], *, tokens: int, done: bool) -> Frame:
    data = base64.b64encode(b"".join(vector.tobytes() for vector in vectors)).decode()
    frame: dict[str, Any] = {"t": "vectors", "sid": sid, "first": first, "count": len(vectors)}
    return frame | {"data": data, "tokens": tokens, "done": done}


def _failed(sid: int, cause: Cause, detail: str) -> Frame:
    return {"t": "vectors", "sid": sid, "cause": cause.value, "detail": detail}
