from __future__ import annotations

import struct
from pathlib import Path

import pytest

from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp.bundled import bundled_model
from serving.engines.llama_cpp.gguf_check import check_gguf


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def text_value(key: str, text: str) -> bytes:
    return string(key) + struct.pack("<I", 8) + string(text)


def number_value(key: str, number: int) -> bytes:
    return string(key) + struct.pack("<II", 4, number)


def array_value(key: str, kind: int, count: int, items: bytes) -> bytes:
    return string(key) + struct.pack("<IIQ", 9, kind, count) + items


def header(pairs: list[bytes], tensors: list[bytes] = [], version: int = 3) -> bytes:  # noqa: B006
    counts = struct.pack("<IQQ", version, len(tensors), len(pairs))
    return b"GGUF" + counts + b"".join(pairs) + b"".join(tensors)


def tensor(name: str, dimensions: list[int], offset: int) -> bytes:
    shape = b"".join(struct.pack("<Q", d) for d in dimensions)
    return string(name) + struct.pack("<I", len(dimensions)) + shape + struct.pack("<IQ", 0, offset)


GOOD = [
    text_value("general.architecture", "llama"),
    number_value("general.file_type", 2),
    number_value("llama.context_length", 8192),
    text_value("tokenizer.chat_template", "{{ messages }}"),
    array_value("tokenizer.ggml.tokens", 8, 2, string("a") + string("b")),
    array_value("tokenizer.ggml.scores", 6, 2, bytes(8)),
]


def check(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    check_gguf(path)


def test_the_bundled_model_is_understood() -> None:
    found = check_gguf(bundled_model())
    assert (found.architecture, found.quantization, found.context_tokens) == ("llama", "Q4_1", 8192)
    assert found.has_chat_template
    assert found.tensors > 200


def test_a_small_good_header_passes(tmp_path: Path) -> None:
    check(tmp_path, header(GOOD, [tensor("w", [8, 8], 0)]))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "cut short"),
        (b"PK\x03\x04" + bytes(60), "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 99, 0, 0), "version 99"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "tensors are over the limit"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "key-values are over the limit"),
        (header([struct.pack("<Q", 1 << 62)]), "string bytes are over the limit"),
        (header([string("k") + struct.pack("<IQ", 8, 1 << 40)]), "string bytes are over the limit"),
        (header([array_value("k", 6, 1 << 50, b"")]), "array items are over the limit"),
        (header([array_value("k", 6, 4000, b"")]), "cut short"),
        (header([array_value("k", 9, 1, b"")]), "array type 9"),
        (header([string("k") + struct.pack("<I", 77)]), "value type 77"),
        (header([number_value("general.file_type", 2)]), "general.architecture"),
        (header(GOOD)[:-20], "cut short"),
        (header(GOOD, [tensor("w", [1] * 9, 0)]), "dimensions are over the limit"),
        (header(GOOD, [tensor("w", [1 << 40, 1 << 40], 0)]), "larger than any memory"),
        (header(GOOD, [tensor("w", [8], 1 << 30)]), "beyond the end of the file"),
    ],
)
def test_a_damaged_header_is_one_clear_sentence(tmp_path: Path, data: bytes, why: str) -> None:
    with pytest.raises(EngineUnavailable, match=why) as error:
        check(tmp_path, data)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="does not exist"):
        check_gguf(tmp_path / "none.gguf")
    with pytest.raises(EngineUnavailable, match="cannot be read"):
        check_gguf(tmp_path)
