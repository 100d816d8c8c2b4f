"""A GGUF file with another chat template and other names of tokens: its weights with another family's words.

Format: magic, version, counts of tensors and of key-values, the key-values, a record per tensor, and the
tensors from the next multiple of the alignment on (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

_STRING, _ARRAY = 8, 9
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_ALIGNMENT = 32
_TEMPLATE, _TOKENS = "tokenizer.chat_template", "tokenizer.ggml.tokens"


def rewrite_gguf(source: Path, target: Path, *, template: str, tokens: Mapping[str, str]) -> None:
    """`tokens` are new names by old ones."""
    with source.open("rb") as old, target.open("wb") as new:
        magic, version, tensors, pairs = struct.unpack("<4sIQQ", old.read(24))
        assert (magic, version) == (b"GGUF", 3)
        new.write(struct.pack("<4sIQQ", magic, version, tensors, pairs))
        seen = [_copy_pair(old, new, template, tokens) for _ in range(pairs)]
        assert {_TEMPLATE, _TOKENS} <= set(seen)
        assert "general.alignment" not in seen
        for _ in range(tensors):
            new.write(_read_string(old))
            (dimensions,) = struct.unpack("<I", head := old.read(4))
            new.write(head + old.read(8 * dimensions + 12))
        old.seek(-old.tell() % _ALIGNMENT, 1)
        new.write(bytes(-new.tell() % _ALIGNMENT))
        shutil.copyfileobj(old, new)


def _copy_pair(old: BinaryIO, new: BinaryIO, template: str, tokens: Mapping[str, str]) -> str:
    key = _text(_read_string(old))
    (kind,) = struct.unpack("<I", old.read(4))
    new.write(_string(key) + struct.pack("<I", kind))
    if kind == _STRING:
        value = _text(_read_string(old))
        new.write(_string(template if key == _TEMPLATE else value))
    elif kind == _ARRAY:
        item, length = struct.unpack("<IQ", head := old.read(12))
        new.write(head)
        if item == _STRING:
            names = [_text(_read_string(old)) for _ in range(length)]
            assert key != _TOKENS or tokens.keys() <= set(names)
            renamed = [tokens.get(name, name) if key == _TOKENS else name for name in names]
            new.write(b"".join(map(_string, renamed)))
        else:
            new.write(old.read(length * _BYTES[item]))
    else:
        new.write(old.read(_BYTES[kind]))
    return key


def _read_string(file: BinaryIO) -> bytes:
    """With its length before it, as it stands in the file."""
    head = file.read(8)
    return head + file.read(struct.unpack("<Q", head)[0])


def _text(string: bytes) -> str:
    return string[8:].decode()


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
