"""Canonical input bytes and the names of prefixes.

The gateway has no tokenizer, so a prefix is named by a chain of HMAC-SHA256 over fixed blocks of the
canonical message bytes: name[i] = HMAC(key, name[i-1] || block[i])[:16], with name[-1] empty. Equal names
mean equal prefixes under the same key; a name says nothing about the text to who lacks the key.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Sequence, Set

from tidegate.routing.domain import Message, Role

# JSON's escapes, backslash first. bytes.replace passes over text without them forty times faster than json
# does, which counts where a prompt of megabytes would hold up every stream.
_ESCAPES = (
    (b"\\", b"\\\\"),
    (b'"', b'\\"'),
    *((bytes([code]), json.dumps(chr(code))[1:-1].encode()) for code in range(0x20)),
)
_ESCAPED_BYTES = b"".join(plain for plain, _ in _ESCAPES)
# Up to here one look for all of them at once is faster than one for each.
_ONE_LOOK_BYTES = 4096
BLOCK_BYTES = 512
# A gateway names so many blocks of a prompt, 64 KiB: naming costs about 3 us a block, and all that is done
# before routing has a millisecond.
NAMED_BLOCKS = 128
NAME_BYTES = 16


def canonical_bytes(messages: Iterable[Message]) -> bytes:
    """One compact JSON array [role, name, content] per message, each ended by a newline, in UTF-8.

    A conversation's bytes are a prefix of the bytes of the same conversation with more turns.
    """
    parts: list[bytes] = []
    for message in messages:
        role, name, content = (_escaped(text) for text in (message.role.value, message.name, message.content))
        parts += (b'["', role, b'","', name, b'","', content, b'"]\n')
    return b"".join(parts)


def _escaped(text: str) -> bytes:
    """The inside of a JSON string in UTF-8. Raises UnicodeEncodeError for surrogates."""
    data = text.encode("utf-8")
    if len(data) <= _ONE_LOOK_BYTES and len(data.translate(None, _ESCAPED_BYTES)) == len(data):
        return data
    for plain, escaped in _ESCAPES:
        if plain in data:
            data = data.replace(plain, escaped)
    return data


def parse_canonical(data: bytes) -> tuple[Message, ...]:
    """Inverse of canonical_bytes. Raises ValueError on anything else."""
    messages = []
    for line in data.decode("utf-8").split("\n"):
        if not line:
            continue
        item = json.loads(line)
        if not (isinstance(item, list) and len(item) == 3 and all(isinstance(x, str) for x in item)):
            raise ValueError("a message must be [role, name, content]")
        messages.append(Message(role=Role(item[0]), name=item[1], content=item[2]))
    return tuple(messages)


def prefix_names(data: bytes, key: bytes, *, max_blocks: int = 256) -> tuple[bytes, ...]:
    """Names of the full blocks of `data`, first block first, at most `max_blocks`."""
    names: list[bytes] = []
    previous = b""
    keyed = hmac.new(key, digestmod=hashlib.sha256)
    for index in range(min(len(data) // BLOCK_BYTES, max_blocks)):
        block = data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
        mac = keyed.copy()
        mac.update(previous + block)
        previous = mac.digest()[:NAME_BYTES]
        names.append(previous)
    return tuple(names)


def names_digest(names: Iterable[bytes]) -> int:
    """XOR of the first 8 bytes of each name: equal sets have equal digests."""
    digest = 0
    for name in names:
        digest ^= int.from_bytes(name[:8], "big")
    return digest


def matched_blocks(wanted: Sequence[bytes], held: Set[bytes]) -> int:
    """How many leading blocks of `wanted` are held."""
    count = 0
    for name in wanted:
        if name not in held:
            break
        count += 1
    return count
