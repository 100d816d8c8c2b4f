"""One answer as it is judged, and files of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Answer:
    """In the order of sending. `open` is how many other requests were not answered when it was sent."""

    sent_s: float
    ttft_ms: float
    p50_ms: float
    p95_ms: float
    prompt_tokens: int
    open: int


def save(path: Path, answers: Sequence[Answer]) -> None:
    """Whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(asdict(a)) + "\n" for a in answers), encoding="utf-8")
    part.rename(path)


def load(path: Path) -> list[Answer]:
    return [Answer(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
