"""What is known about a model file, kept beside it as NAME.gguf.json."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Figures:
    """What one file was measured to do on one device. Rates are tokens/s; decode is of all slots together.

    `accuracy` is the share of right answers among `accuracy_items` questions. Memory is that of the measuring
    process with the caches of all slots filled as far as the measurement went.
    """

    hardware_class: str
    measured_on: str
    threads: int
    slots: int
    context_tokens: int
    load_ms: float
    rss_bytes: int
    pss_bytes: int
    repacked_bytes: int
    prefill_tokens_per_s: float
    decode_1_tokens_per_s: float
    decode_slots_tokens_per_s: float
    accuracy: float
    accuracy_items: int
    accuracy_text: str = ""

    @classmethod
    def parse(cls, data: Any) -> Self | None:
        """From JSON; None for nothing. Raises TypeError when members are missing."""
        return None if data is None else cls(**_known(cls, data))


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One file. `digest` is "sha256:" and hex; the rest of the identity is only there to notice changes.

    `perplexity` was measured on `perplexity_text` (the digest of that text); None when it never was.
    `pruned_layers` are the numbers, in the source, of the layers that were left out. `fallback_tensors` are
    those that got another type than the quantization asks for, because their rows do not divide by 256.
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
    pruned_layers: tuple[int, ...] = ()
    fallback_tensors: int = 0
    figures: Figures | None = None

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
        data["pruned_layers"] = tuple(data.get("pruned_layers", ()))
        data["figures"] = Figures.parse(data.get("figures"))
        return CatalogEntry(**_known(CatalogEntry, data))
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _known(cls: type[Figures | CatalogEntry], data: dict[str, Any]) -> dict[str, Any]:
    """Without members that a later version wrote."""
    names = {field.name for field in fields(cls)}
    return {key: value for key, value in data.items() if key in names}


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


def file_stamp(path: Path) -> tuple[int, int, int, int] | None:
    """What changes when a file is replaced or written to; None for one that is not there."""
    try:
        seen = path.stat()
    except OSError:
        return None
    return seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns


def file_stamps(paths: Iterable[Path]) -> list[tuple[int, int, int, int] | None]:
    return [file_stamp(path) for path in paths]


def file_digest(path: Path) -> str:
    """ "sha256:" and the hex digest of the file."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
