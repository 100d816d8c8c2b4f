"""Reads the locked requirements: splits them, and hashes what a set-up depends on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

ENGINE = "llama-cpp-python"


def blocks(text: str) -> list[str]:
    """The requirements of a lock file, each with its continuation lines; comments are dropped."""
    joined = re.sub(r"\\\n\s*", "\\\n    ", text)
    found: list[str] = []
    for line in joined.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line.startswith(" ") and found:
            found[-1] += "\n" + line
        else:
            found.append(line)
    return found


def name_of(block: str) -> str:
    return re.split(r"[=<>!~ \[;]", block, maxsplit=1)[0].lower()


def version_of(block: str) -> str:
    match = re.match(r"[^=]+==([^ ;\\]+)", block)
    if match is None:
        raise ValueError(f"not locked to a version: {block.splitlines()[0]}")
    return match[1]


def split_engine(lock: Path) -> tuple[str, str]:
    """The lock without the engine, and the engine's own block: it is built apart, once for all checkouts."""
    found = blocks(lock.read_text())
    engine = [block for block in found if name_of(block) == ENGINE]
    if len(engine) != 1:
        raise ValueError(f"{lock} must name {ENGINE} once")
    rest = [block for block in found if block is not engine[0]]
    return "\n".join(rest) + "\n", engine[0] + "\n"


def digest(root: Path, names: Iterable[str], settings: str) -> str:
    """Changes with one of these files, the settings, or the checkout's place (scripts hold its path)."""
    state = hashlib.sha256(f"{root}\0{settings}".encode())
    for name in names:
        state.update(b"\0" + name.encode() + b"\0" + (root / name).read_bytes())
    return state.hexdigest()[:16]
