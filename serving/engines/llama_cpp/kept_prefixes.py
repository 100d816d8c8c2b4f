"""Parked prefixes of public data in a file, from one life of the engine to the next.

    header   one line of JSON: what the file is for, the shapes of a block, sizes, SHA-256 of the rest
    index    JSON: per block its namespace, its parent, its tokens, the names of prefixes that end in it
    blocks   keys, then values, of each in the same order

Only what public work has begun with is written. The header's identity covers the model's file, the build and
its processor features, the type of the cache, the adapters and the layout of the states: a file of anything
else is as good as none. The checksum finds damage, not malice: whoever can write to the file can change
answers, so it belongs in a folder of the node's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from serving.engines.llama_cpp.block_tree import BlockTree, Node
from serving.engines.llama_cpp.kv_state import KvBlock, StateLayout

_KIND = "tidegate prefixes 1"
_MAX_HEADER_BYTES = 4096
_MAX_INDEX_BYTES = 64 * 2**20


class Unusable(Exception):
    """The file is none of ours, damaged, or one for something else; the message says which."""


@dataclass(frozen=True, slots=True)
class KeptPrefixes:
    """One file of at most `max_bytes`; `identity` names all that its blocks depend on but the layout."""

    path: Path
    max_bytes: int
    identity: str

    def write(self, tree: BlockTree[KvBlock]) -> str:
        """Replaces the file by the tree's public blocks; what was done, in a sentence."""
        nodes = _most_worth(tree, self.max_bytes)
        part = self.path.with_name(f".{self.path.name}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not nodes:
                self.path.unlink(missing_ok=True)
                return "no prefix of public data is parked"
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                self._put(file, nodes)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            return f"prefixes could not be written: {error.strerror}"
        return f"{len(nodes) * tree.block_tokens} tokens of prefixes are written"

    def _put(self, file: BinaryIO, nodes: list[Node[KvBlock]]) -> None:
        index = json.dumps(_index(nodes)).encode()
        first = nodes[0].block
        assert first is not None
        digest = hashlib.sha256(index)
        for data in _data(nodes):
            digest.update(data)
        header = {
            "kind": _KIND,
            "identity": self._identity(first.layout),
            "keys": first.keys.shape,
            "values": first.values.shape,
            "blocks": len(nodes),
            "index_bytes": len(index),
            "sha256": digest.hexdigest(),
        }
        file.write(json.dumps(header).encode() + b"\n")
        file.write(index)
        for data in _data(nodes):
            file.write(data)

    def read(self, tree: BlockTree[KvBlock], sample: KvBlock, cost_ms_per_block: float) -> str:
        """Parks the file's blocks; what was found, in a sentence. `sample` is a block of this engine."""
        try:
            with self.path.open("rb") as file:
                index, blocks = self._get(file, sample)
            count = _park(tree, index, blocks, cost_ms_per_block)
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"the file of prefixes cannot be read: {error.strerror}"
        except Unusable as error:
            return f"the file of prefixes is ignored: {error}"
        except (ValueError, KeyError, TypeError, LookupError, RecursionError):
            return "the file of prefixes is ignored: it is malformed"
        return f"{count * tree.block_tokens} tokens of prefixes are read"

    def _get(self, file: BinaryIO, sample: KvBlock) -> tuple[list[Any], list[KvBlock]]:
        """Nothing of the file is used before its digest is known to be right."""
        header = json.loads(file.readline(_MAX_HEADER_BYTES))
        if not isinstance(header, dict) or header.get("kind") != _KIND:
            raise Unusable("it is of another kind or version")
        if header["identity"] != self._identity(sample.layout):
            raise Unusable("it was made with another model, build or configuration")
        shapes = tuple(header["keys"]), tuple(header["values"])
        if shapes != (sample.keys.shape, sample.values.shape):
            raise Unusable("its blocks have another shape")
        count, index_bytes = int(header["blocks"]), int(header["index_bytes"])
        if count * sample.nbytes > self.max_bytes or not 0 <= index_bytes <= _MAX_INDEX_BYTES:
            raise Unusable("it is larger than it may be")
        index = file.read(index_bytes)
        digest, blocks = hashlib.sha256(index), []
        for _ in range(count):
            parts = file.read(sample.keys.nbytes), file.read(sample.values.nbytes)
            digest.update(parts[0])
            digest.update(parts[1])
            if len(parts[1]) != sample.values.nbytes:
                raise Unusable("it is shorter than it says")
            keys, values = (np.frombuffer(part, np.uint8) for part in parts)
            blocks.append(KvBlock(sample.layout, keys.reshape(shapes[0]), values.reshape(shapes[1])))
        if digest.hexdigest() != header["sha256"] or file.read(1):
            raise Unusable("its checksum is wrong")
        return json.loads(index), blocks

    def _identity(self, layout: StateLayout) -> str:
        return hashlib.sha256(f"{self.identity}\0{layout}".encode()).hexdigest()


def _most_worth(tree: BlockTree[KvBlock], max_bytes: int) -> list[Node[KvBlock]]:
    """Public blocks up to so many bytes, those whose loss would cost most, each after its parent."""
    chosen: dict[int, Node[KvBlock]] = {}
    used = 0
    for node in sorted(tree.public(), key=lambda node: -node.worth):
        path: list[Node[KvBlock]] = []
        at: Node[KvBlock] | None = node
        while at is not None and at.block is not None and id(at) not in chosen:
            path.append(at)
            at = at.parent
        needed = sum(each.nbytes for each in path)
        if used + needed <= max_bytes:
            used += needed
            chosen |= {id(each): each for each in reversed(path)}
    return list(chosen.values())


def _index(nodes: list[Node[KvBlock]]) -> list[Any]:
    place = {id(node): number for number, node in enumerate(nodes)}
    index = []
    for node in nodes:
        assert node.parent is not None
        space = node.parent.key.decode() if node.parent.block is None else ""
        names = [name.hex() for name in node.names]
        index.append([space, place.get(id(node.parent), -1), node.key.hex(), names])
    return index


def _data(nodes: list[Node[KvBlock]]) -> Iterator[bytes]:
    for node in nodes:
        assert node.block is not None
        yield node.block.keys.tobytes()
        yield node.block.values.tobytes()


def _same(block: KvBlock, _start: int, _end: int) -> KvBlock:
    return block


def _park(tree: BlockTree[KvBlock], index: list[Any], blocks: list[KvBlock], cost_ms_per_block: float) -> int:
    """How many blocks are parked now; those that there is no room for are left out, with all below them."""
    paths: list[tuple[str, bytes]] = []
    parked = 0
    for (space, parent, key, names), block in zip(index, blocks, strict=True):
        before = (space, b"") if parent < 0 else paths[parent]
        data = before[1] + bytes.fromhex(key)
        paths.append((before[0], data))
        tokens = np.frombuffer(data, np.int32)
        if len(tokens) != len(data) // 4 or len(bytes.fromhex(key)) != 4 * tree.block_tokens:
            raise Unusable("a block has another length")
        if tree.used_bytes + block.nbytes > tree.budget_bytes:
            break
        named = [(bytes.fromhex(name), len(tokens)) for name in names]
        made = tree.park(
            before[0],
            tokens,
            named,
            partial(_same, block),
            cost_ms_per_block,
            public_tokens=len(tokens),
        )
        parked += made == len(tokens)
    return parked
