"""The header of a GGUF file, checked before llama.cpp sees the file.

llama.cpp reads lengths and counts out of the file and trusts most of them; a damaged or hostile file must end
in one clear sentence, not in a crash. Format: magic, version, tensor count, key-value count, then the
key-values (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), then one record per tensor.
"""

from __future__ import annotations

import difflib
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from serving.engines.base import EngineUnavailable

MAX_TENSORS = 65_536
MAX_KEY_VALUES = 65_536
MAX_KEY_BYTES = 65_535
MAX_STRING_BYTES = 16 * 1024 * 1024
MAX_ARRAY_ITEMS = 4_194_304
MAX_DIMENSIONS = 4

_STRING, _ARRAY = 8, 9
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_SCALAR_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_KEPT_STRING_BYTES = 4096
_KEPT_ARRAY_ITEMS = 4096

# general.file_type, as llama.cpp numbers it.
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    25: "IQ4_NL", 30: "IQ4_XS", 32: "BF16",
}  # fmt: skip

# What llama.cpp can write, by the names it uses itself.
QUANTIZATIONS = frozenset({
    "F32", "F16", "BF16", "Q1_0", "Q2_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q2_K_S", "Q3_K_S",
    "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS",
    "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0",
    "MXFP4_MOE", "NVFP4",
})  # fmt: skip

# Types of single tensors, as ggml numbers them.
_TENSOR_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a header says. `context_tokens` is what the model was trained for, 0 when unsaid."""

    version: int
    architecture: str
    quantization: str
    context_tokens: int
    has_chat_template: bool
    tensors: int


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """`shape` begins with the row length; `type` is ggml's name, or its number as text."""

    name: str
    shape: tuple[int, ...]
    type: str


@dataclass(frozen=True, slots=True)
class GgufArray:
    """`items` only of short arrays of numbers; None otherwise."""

    length: int
    items: tuple[object, ...] | None


@dataclass(frozen=True, slots=True)
class GgufContents:
    """Everything a header holds but long texts and arrays. Values: str, numbers, bool or GgufArray."""

    header: GgufHeader
    values: Mapping[str, object]
    tensors: tuple[GgufTensor, ...]

    def number(self, key: str, default: int = 0) -> int:
        """The number at ARCHITECTURE.`key`; of an array (one a layer) the largest."""
        value = self.values.get(f"{self.header.architecture}.{key}", default)
        if isinstance(value, GgufArray):
            return max((item for item in value.items or () if isinstance(item, int)), default=default)
        return value if isinstance(value, int) else default


class _Damaged(Exception):
    """The header cannot be right; the message says why."""


def check_gguf(path: Path) -> GgufHeader:
    """The header of `path`. Raises EngineUnavailable with one sentence when it is missing or wrong."""
    return read_gguf(path).header


def read_gguf(path: Path) -> GgufContents:
    """Like check_gguf, with all that the header says."""
    try:
        with path.open("rb") as file:
            return _Header(file, path.stat().st_size).read()
    except FileNotFoundError:
        raise EngineUnavailable(f"the model file {path} does not exist") from None
    except OSError as error:
        raise EngineUnavailable(f"the model file {path} cannot be read: {error.strerror}") from error
    except _Damaged as error:
        raise EngineUnavailable(f"the model file {path} is no usable GGUF file: {error}") from error


def unknown_quantization(names: Iterable[str]) -> str:
    """What to say of the first of `names` that llama.cpp cannot write, "" where it can write them all."""
    name = next((name for name in names if name not in QUANTIZATIONS), "")
    close = difflib.get_close_matches(name, QUANTIZATIONS, n=1)
    return name and f"llama.cpp knows no quantization {name}" + (
        f"; did you mean {close[0]}?" if close else ""
    )


def fallback_tensors(contents: GgufContents, quantization: str) -> tuple[GgufTensor, ...]:
    """The tensors that could not get what `quantization` asks for: its blocks are 256 weights of one row.

    llama.cpp gives them a type with blocks of 32, which is larger than what was asked for.
    """
    if "_K" not in quantization and quantization != "IQ4_XS":
        return ()
    return tuple(
        t for t in contents.tensors if len(t.shape) > 1 and t.shape[0] % 256 and t.type not in ("F32", "F16")
    )


class _Header:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def read(self) -> GgufContents:
        if self._take(4) != b"GGUF":
            raise _Damaged("it does not begin with GGUF")
        version = self._number("I")
        if version not in (2, 3):
            raise _Damaged(f"version {version} is not 2 or 3")
        tensors = self._count("Q", MAX_TENSORS, "tensors")
        pairs = self._count("Q", MAX_KEY_VALUES, "key-values")
        values: dict[str, object] = {}
        for _ in range(pairs):
            key = self._string(MAX_KEY_BYTES).decode("utf-8", "replace")
            values[key] = self._value(self._number("I"))
        records = tuple(self._tensor_record() for _ in range(tensors))
        return GgufContents(_summary(version, tensors, values), values, records)

    def _value(self, kind: int) -> object:
        if kind == _STRING:
            return self._string(MAX_STRING_BYTES)[:_KEPT_STRING_BYTES].decode("utf-8", "replace")
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALAR_FORMATS:
            raise _Damaged(f"value type {kind} is unknown")
        return self._number(_SCALAR_FORMATS[kind])

    def _array(self) -> GgufArray:
        kind = self._number("I")
        items = self._count("Q", MAX_ARRAY_ITEMS, "array items")
        if kind == _STRING:
            for _ in range(items):
                self._skip(self._count("Q", MAX_STRING_BYTES, "string bytes"))
        elif kind in _SCALAR_FORMATS and items <= _KEPT_ARRAY_ITEMS:
            return GgufArray(items, tuple(self._number(_SCALAR_FORMATS[kind]) for _ in range(items)))
        elif kind in _SCALAR_BYTES:
            self._skip(items * _SCALAR_BYTES[kind])
        else:
            raise _Damaged(f"array type {kind} is not supported")
        return GgufArray(items, None)

    def _tensor_record(self) -> GgufTensor:
        name = self._string(MAX_KEY_BYTES).decode("utf-8", "replace")
        dimensions = self._count("I", MAX_DIMENSIONS, "dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))
        if math.prod(shape) >= 1 << 63:
            raise _Damaged("a tensor is larger than any memory")
        kind = self._number("I")
        if self._number("Q") >= self._size:
            raise _Damaged("a tensor lies beyond the end of the file: it was cut short")
        return GgufTensor(name, shape, _TENSOR_TYPES.get(kind, str(kind)))

    def _count(self, kind: str, limit: int, what: str) -> int:
        count = self._number(kind)
        if count > limit:
            raise _Damaged(f"{count} {what} are over the limit of {limit}")
        return count

    def _number(self, kind: str) -> int:
        layout = struct.Struct("<" + kind)
        number: int = layout.unpack(self._take(layout.size))[0]
        return number

    def _string(self, limit: int) -> bytes:
        return self._take(self._count("Q", limit, "string bytes"))

    def _take(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) != count:
            raise _Damaged("its header is cut short")
        return data

    def _skip(self, count: int) -> None:
        if self._file.tell() + count > self._size:
            raise _Damaged("its header is cut short")
        self._file.seek(count, 1)


def _summary(version: int, tensors: int, values: dict[str, object]) -> GgufHeader:
    architecture = str(values.get("general.architecture", ""))
    if not architecture:
        raise _Damaged("it names no general.architecture")
    context = values.get(f"{architecture}.context_length")
    file_type = values.get("general.file_type")
    return GgufHeader(
        version=version,
        architecture=architecture,
        quantization=_FILE_TYPES.get(file_type, "") if isinstance(file_type, int) else "",
        context_tokens=context if isinstance(context, int) else 0,
        has_chat_template=bool(values.get("tokenizer.chat_template")),
        tensors=tensors,
    )
