"""The door to llama.cpp: a model, its vocabulary, and a context with its batch. No policy in here.

Imported only in child processes: native code may crash. numpy views lie over the batch's C arrays, so that a
step fills slices instead of looping over tokens.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.engines.llama_cpp.attention import step_tokens
from serving.engines.llama_cpp.binding import load_binding

# The binding types pointers as Optional or as ints depending on the release; here they are opaque.
C: Any
C, _VERSION = load_binding()
Tokens = npt.NDArray[np.int32]

_ABORTED = 2
_KV_TYPES = {"f16": C.GGML_TYPE_F16, "q8_0": C.GGML_TYPE_Q8_0}
# llama.cpp asks its abort callback between any two operations of a step. This one never enters Python: the
# callback is C's strlen, its argument a text that is empty until interrupt() puts a character into it.
_STRLEN = ctypes.cast(ctypes.CDLL(None).strlen, C.ggml_abort_callback)
_NO_DEVICES = (ctypes.c_void_p * 1)(None)
_SPECIAL = C.LLAMA_TOKEN_ATTR_CONTROL | C.LLAMA_TOKEN_ATTR_UNKNOWN


class NativeError(Exception):
    """llama.cpp refused or failed; the message is one sentence."""


@C.llama_log_callback  # type: ignore[untyped-decorator]
def _silent(_level: int, _text: bytes, _data: object) -> None:
    """llama.cpp logs to standard error otherwise."""


def silence_log() -> None:
    """llama.cpp's words go nowhere from now on."""
    C.llama_log_set(_silent, None)


def start_backend(*, debug: bool) -> None:
    """Once per process, before anything else."""
    if not debug:
        silence_log()
    C.llama_backend_init()


def build_id() -> str:
    """Binding version and the processor features in use: what can change figures in the last digits."""
    import hashlib

    features = hashlib.sha256(C.llama_print_system_info()).hexdigest()[:8]
    return f"llama-cpp-python-{_VERSION}+{features}"


class Model:
    """A loaded GGUF file. Tokenising is safe from any thread. Raises NativeError when it cannot be loaded.

    Without `n_gpu_layers` nothing is computed on a GPU, whatever llama.cpp was built for.
    """

    def __init__(self, path: str, *, n_gpu_layers: int = 0) -> None:
        params = C.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        if n_gpu_layers == 0:
            # A list that ends at once: a build for GPUs would else compute long prompts there all the same.
            params.devices = ctypes.cast(_NO_DEVICES, ctypes.c_void_p)
        elif not C.llama_supports_gpu_offload():
            raise NativeError(
                "n_gpu_layers is set, but llama.cpp finds no GPU: was it built for one, with CMAKE_ARGS, and "
                "may this process use its driver?"
            )
        self.handle = C.llama_model_load_from_file(path.encode(), params)
        if not self.handle:
            raise NativeError("llama.cpp cannot load the file (set debug to see why)")
        self.vocab = self._vocab = C.llama_model_get_vocab(self.handle)
        self.n_vocab: int = C.llama_vocab_n_tokens(self._vocab)
        self.context_train: int = C.llama_model_n_ctx_train(self.handle)
        self.adds_bos: bool = C.llama_vocab_get_add_bos(self._vocab)
        self._pieces: dict[int, bytes] = {}
        self._end: dict[int, bool] = {}

    @property
    def chat_template(self) -> str:
        """The template inside the file; "" when there is none."""
        template = C.llama_model_chat_template(self.handle, None)
        return template.decode("utf-8", "replace") if template else ""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> Tokens:
        data = text.encode()
        room = len(data) + 16
        buffer = (C.llama_token * room)()
        count = C.llama_tokenize(self._vocab, data, len(data), buffer, room, add_special, parse_special)
        if count < 0:
            raise NativeError("the text cannot be tokenised")
        return np.ctypeslib.as_array(buffer)[:count].astype(np.int32)

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; empty for control tokens."""
        piece = self._pieces.get(token)
        if piece is None:
            size = 64
            while True:
                buffer = ctypes.create_string_buffer(size)
                count = C.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
                if count >= 0:
                    break
                size = -count
            piece = self._pieces[token] = buffer.raw[:count]
        return piece

    def is_end(self, token: int) -> bool:
        """Whether the token ends an answer."""
        end = self._end.get(token)
        if end is None:
            end = self._end[token] = bool(C.llama_vocab_is_eog(self._vocab, token))
        return end

    def special_texts(self) -> list[str]:
        """Texts that are control tokens when they are parsed as such."""
        attr, text = C.llama_vocab_get_attr, C.llama_vocab_get_text
        special = (text(self._vocab, i) for i in range(self.n_vocab) if attr(self._vocab, i) & _SPECIAL)
        return [t.decode("utf-8", "replace") for t in special if t]

    def boundary_texts(self) -> tuple[str, str]:
        """(begin, end) of sequence as text, "" where the model has none."""
        ids = (C.llama_vocab_bos(self._vocab), C.llama_vocab_eos(self._vocab))
        begin, end = (
            C.llama_vocab_get_text(self._vocab, i).decode("utf-8", "replace") if i >= 0 else "" for i in ids
        )
        return begin, end

    def load_adapter(self, path: str, name: str) -> Any:
        """A LoRA adapter, freed with the model. Raises NativeError."""
        adapter = C.llama_adapter_lora_init(self.handle, path.encode())
        if not adapter:
            raise NativeError(f"llama.cpp cannot load the adapter {name}: is it one for this model?")
        return adapter

    def close(self) -> None:
        C.llama_model_free(self.handle)


class Context:
    """Key-value cache for `sequences` of `context_tokens` each, and the batch of one step.

    Fill the first n entries of `tokens`, `positions`, `sequence_ids` (ascending, or llama.cpp splits the
    batch) and `outputs` (1 where logits are wanted), then decode(n). Any thread may call interrupt().
    """

    def __init__(
        self,
        model: Model,
        *,
        sequences: int,
        context_tokens: int,
        n_batch: int,
        threads: int,
        kv_type: str,
        flash: bool = False,
    ) -> None:
        params = C.llama_context_default_params()
        params.n_ctx = context_tokens * sequences
        params.n_seq_max = sequences
        params.n_batch = n_batch
        heads = C.llama_model_n_head(model.handle)
        params.n_ubatch = step_tokens(n_batch, heads, context_tokens, flash=flash)
        params.flash_attn_type = C.LLAMA_FLASH_ATTN_TYPE_AUTO if flash else C.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = _KV_TYPES[kv_type]
        # One stream per sequence: 11 to 24 % faster from 8 sequences on than a unified cache.
        params.kv_unified = False
        self._interrupt = ctypes.create_string_buffer(2)
        params.abort_callback = _STRLEN
        params.abort_callback_data = ctypes.cast(self._interrupt, ctypes.c_void_p)
        self.handle = C.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise NativeError(f"no memory for {sequences} sequences of {context_tokens} tokens")
        self._memory = C.llama_get_memory(self.handle)
        self._n_vocab = model.n_vocab
        self._batch = C.llama_batch_init(n_batch, 0, 1)
        self._view_batch(n_batch)

    def _view_batch(self, n_batch: int) -> None:
        view = np.ctypeslib.as_array
        self.tokens: Tokens = view(self._batch.token, (n_batch,))
        self.positions: Tokens = view(self._batch.pos, (n_batch,))
        self.outputs: npt.NDArray[np.int8] = view(self._batch.logits, (n_batch,))
        view(self._batch.n_seq_id, (n_batch,))[:] = 1
        # Each token's sequence list is a separate allocation: point them all into one array instead.
        self.sequence_ids: Tokens = np.zeros(n_batch, np.int32)
        self._lists = ctypes.cast(self._batch.seq_id, ctypes.POINTER(ctypes.c_void_p))
        self._own_lists = [self._lists[i] for i in range(n_batch)]
        base = self.sequence_ids.ctypes.data
        for i in range(n_batch):
            self._lists[i] = base + i * self.sequence_ids.itemsize
        self._token_bytes, self._position_bytes = self.tokens.data.cast("B"), self.positions.data.cast("B")

    def put(self, tokens: Sequence[int], positions: Sequence[int]) -> None:
        """The first entries' tokens and positions; who they are of and whose logits are wanted stays."""
        ints = _ints(len(tokens))
        ints.pack_into(self._token_bytes, 0, *tokens)
        ints.pack_into(self._position_bytes, 0, *positions)

    def decode(self, count: int) -> bool:
        """Computes the first `count` entries. Raises NativeError; the context is of no use after that.

        False after an interrupt: what the sequences of the batch hold beyond their earlier lengths is then to
        be cut off.
        """
        self._batch.n_tokens = count
        result = C.llama_decode(self.handle, self._batch)
        if result not in (0, _ABORTED):
            raise NativeError(f"llama_decode failed with {result} at {count} tokens")
        C.llama_synchronize(self.handle)
        return bool(result == 0)

    def set_threads(self, count: int) -> None:
        """For every later decode."""
        C.llama_set_n_threads(self.handle, count, count)

    def set_adapter(self, adapter: Any, scale: float) -> None:
        """For every later decode; None for none. Raises NativeError."""
        adapters = (C.llama_adapter_lora_p_ctypes * 1)(adapter)
        scales = (ctypes.c_float * 1)(scale)
        if C.llama_set_adapters_lora(self.handle, adapters, 0 if adapter is None else 1, scales) != 0:
            raise NativeError("llama.cpp cannot apply the adapter")

    def interrupt(self) -> None:
        """Ends the running decode() early, and every later one until resume()."""
        self._interrupt[0] = b"!"

    def resume(self) -> None:
        self._interrupt[0] = b"\0"

    def logits(self, entry: int) -> npt.NDArray[np.float32]:
        """A view, valid until the next decode."""
        pointer = C.llama_get_logits_ith(self.handle, entry)
        view: npt.NDArray[np.float32] = np.ctypeslib.as_array(pointer, (self._n_vocab,))
        return view

    def likeliest(self, entry: int) -> int:
        """The token with the highest logit, of equal ones the first."""
        return int(self.logits(entry).argmax())

    def truncate(self, sequence: int, length: int) -> bool:
        """Keeps the first `length` positions; False when the memory cannot be cut (then it is empty)."""
        if length > 0 and C.llama_memory_seq_rm(self._memory, sequence, length, -1):
            return True
        C.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return length == 0

    def save(self, sequence: int) -> npt.NDArray[np.uint8]:
        """The sequence's whole state; empty when llama.cpp cannot give it."""
        size = C.llama_state_seq_get_size(self.handle, sequence)
        state = np.empty(size, np.uint8)
        written = C.llama_state_seq_get_data(self.handle, _byte_pointer(state), size, sequence)
        return state[:written]

    def restore(self, sequence: int, state: npt.NDArray[np.uint8]) -> bool:
        """Replaces the sequence by a saved one; False when that failed (then it is empty)."""
        size = state.nbytes
        if C.llama_state_seq_set_data(self.handle, _byte_pointer(state), size, sequence) == size:
            return True
        C.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return False

    def copy(self, source: int, target: int) -> None:
        """Replaces `target` by `source`, whatever its length: without a unified cache, at the next decode."""
        C.llama_memory_seq_rm(self._memory, target, -1, -1)
        C.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def clear(self) -> None:
        C.llama_memory_clear(self._memory, True)

    def close(self) -> None:
        for i, pointer in enumerate(self._own_lists):
            self._lists[i] = pointer
        C.llama_batch_free(self._batch)
        C.llama_free(self.handle)


@functools.cache
def _ints(count: int) -> struct.Struct:
    return struct.Struct(f"{count}i")


def _byte_pointer(data: npt.NDArray[np.uint8]) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
