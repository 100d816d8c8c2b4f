"""What is known about a model file, kept beside it as NAME.gguf.json."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One file. `digest` is "sha256:" and hex; the rest of the identity is only there to notice changes.

    `perplexity` was measured on `perplexity_text` (the digest of that text); None when it never was.
    """

    model: str
    quantization: str
    digest: str
    bytes: int
    mtime_ns: int
    context_tokens: int
    perplexity: float | None = None
    perplexity_text: str = ""
    source_digest: str = ""

    def matches(self, path: Path) -> bool:
        """Whether size and modification time are those that were written down."""
        stat = path.stat()
        return stat.st_size == self.bytes and stat.st_mtime_ns == self.mtime_ns


def entry_path(model_path: Path) -> Path:
    return model_path.with_name(model_path.name + ".json")


def load_entry(model_path: Path) -> CatalogEntry | None:
    """The entry beside the file as written; None when there is none or it is damaged."""
    try:
        data = json.loads(entry_path(model_path).read_bytes())
        known = {field.name for field in fields(CatalogEntry)}
        return CatalogEntry(**{key: value for key, value in data.items() if key in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def read_entry(model_path: Path) -> CatalogEntry | None:
    """The entry beside the file; None also when the file has changed since."""
    entry = load_entry(model_path)
    try:
        return entry if entry is not None and entry.matches(model_path) else None
    except OSError:
        return None


def write_entry(model_path: Path, entry: CatalogEntry) -> None:
    """Atomically: a reader sees the old entry or the new one."""
    path = entry_path(model_path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(asdict(entry), indent=1) + "\n")
    temporary.replace(path)


def file_digest(path: Path) -> str:
    """ "sha256:" and the hex digest of the file."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
