"""The file of parked prefixes: what goes in, what comes back, and what is ignored."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from llama_fake_memory import block

from serving.engines.llama_cpp.block_tree import BlockTree, Tokens
from serving.engines.llama_cpp.held_names import HeldNames
from serving.engines.llama_cpp.kept_prefixes import KeptPrefixes
from serving.engines.llama_cpp.kv_state import KvBlock

SIZE = 16
NAME = b"n" * 16


def made_tree(budget_bytes: int = 1 << 20) -> tuple[BlockTree[KvBlock], HeldNames]:
    names = HeldNames()
    return BlockTree(budget_bytes, SIZE, names), names


def text(seed: int, blocks: int) -> Tokens:
    return np.random.default_rng(seed).integers(0, 1000, blocks * SIZE).astype(np.int32)


def park(tree: BlockTree[KvBlock], tokens: Tokens, space: str = "s", *, public: bool = True) -> None:
    upto = len(tokens) if public else 0
    names = ((NAME, len(tokens)),)
    tree.park(space, tokens, names, lambda a, b: block(tokens[a:b]), 1.0, public_tokens=upto)


def held(tree: BlockTree[KvBlock], tokens: Tokens, space: str = "s") -> Tokens:
    """The tokens whose keys are parked: the fake's rows are the tokens themselves."""
    rows = [node.block.keys[1] for node in tree.match(space, tokens) if node.block is not None]
    return np.frombuffer(b"".join(row.tobytes() for row in rows), "<i4")


def kept(tmp_path: Path, identity: str = "model", max_bytes: int = 1 << 20) -> KeptPrefixes:
    return KeptPrefixes(tmp_path / "state" / "prefixes", max_bytes, identity)


def written(tmp_path: Path, *prompts: Tokens) -> KeptPrefixes:
    tree, _ = made_tree()
    for tokens in prompts:
        park(tree, tokens)
    file = kept(tmp_path)
    assert file.write(tree).endswith("are written")
    return file


def read(file: KeptPrefixes, tree: BlockTree[KvBlock]) -> str:
    return file.read(tree, block(text(0, 1)), 1.0)


def test_public_prefixes_come_back_and_others_are_not_written(tmp_path: Path) -> None:
    tree, _ = made_tree()
    shared, longer, secret = text(1, 3), text(2, 2), text(3, 4)
    park(tree, np.concatenate([shared, longer]))
    park(tree, secret, public=False)
    # Restricted work that goes on where public work has begun leaves only the beginning public.
    park(tree, np.concatenate([shared, secret]), public=False)
    park(tree, longer, "other")
    assert kept(tmp_path).write(tree) == f"{7 * SIZE} tokens of prefixes are written"
    assert secret[:SIZE].tobytes() not in kept(tmp_path).path.read_bytes()
    assert (kept(tmp_path).path.stat().st_mode & 0o777) == 0o600
    again, names = made_tree()
    assert read(kept(tmp_path), again) == f"{7 * SIZE} tokens of prefixes are read"
    whole = np.concatenate([shared, longer])
    assert held(again, whole).tolist() == whole.tolist()
    assert held(again, longer, "other").tolist() == longer.tolist()
    assert len(held(again, secret)) == 0
    assert len(held(again, longer, "s")) == 0
    assert names.take_changes()[0] == [NAME]
    assert {node.public for node in again.match("s", whole)} == {True}


def flipped(data: bytes) -> bytes:
    return data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (flipped, "checksum"),
        (lambda data: data[:-1], "shorter"),
        (lambda data: data[: len(data) // 2], "shorter"),
        (lambda data: data + b"x", "checksum"),
        (lambda data: b"", "malformed"),
        (lambda data: os.urandom(2000), "malformed"),
        (lambda data: b"[1]\n", "another kind"),
        (lambda data: data.replace(b"prefixes 1", b"prefixes 2"), "another kind"),
        (lambda data: data.replace(b'"blocks": 2', b'"blocks": 2000000000'), "larger"),
        (lambda data: data.replace(b'"index_bytes": ', b'"index_bytes": -'), "larger"),
    ],
)
def test_a_damaged_file_is_ignored_whole(tmp_path: Path, damage: Callable[[bytes], bytes], why: str) -> None:
    tokens = text(4, 2)
    file = written(tmp_path, tokens)
    file.path.write_bytes(damage(file.path.read_bytes()))
    tree, _ = made_tree()
    assert why in read(file, tree)
    assert tree.used_bytes == 0


def test_a_file_for_something_else_is_ignored(tmp_path: Path) -> None:
    written(tmp_path, text(5, 2))
    tree, _ = made_tree()
    assert "another model" in read(kept(tmp_path, identity="other"), tree)
    assert "larger" in read(kept(tmp_path, max_bytes=10), tree)
    assert kept(tmp_path / "nowhere").read(tree, block(text(0, 1)), 1.0) == ""
    assert tree.used_bytes == 0


def test_the_file_and_the_tree_keep_their_sizes(tmp_path: Path) -> None:
    tree, _ = made_tree()
    for seed in range(6):
        park(tree, text(seed, 2))
    one = block(text(0, 1)).nbytes
    tree.hit(tree.match("s", text(3, 2)), 100.0)
    assert kept(tmp_path, max_bytes=2 * one + 1).write(tree).startswith(f"{2 * SIZE} tokens")
    small, _ = made_tree(budget_bytes=one)
    assert read(kept(tmp_path), small).startswith(f"{SIZE} tokens")
    assert len(held(small, text(3, 2))) == SIZE


def test_a_full_disk_harms_nothing(tmp_path: Path) -> None:
    file = written(tmp_path, text(6, 1))
    before = file.path.read_bytes()
    tree, _ = made_tree()
    park(tree, text(7, 2))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        assert "could not be written" in file.write(tree)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [each.name for each in (tmp_path / "state").iterdir()] == ["prefixes"]
    (tmp_path / "state" / ".prefixes.part").mkdir()
    assert "could not be written" in file.write(tree)
    assert file.path.read_bytes() == before
