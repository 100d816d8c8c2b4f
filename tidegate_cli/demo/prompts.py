"""Prompts of the demo: its own, or anybody's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tidegate_cli.stack.process import ChildFailed

OWN = Path(__file__).with_name("prompts.txt")
# In the worst case every byte is a token: this surely fits a context of 2,048 beside template and answer.
MAX_BYTES = 1600


@dataclass(frozen=True, slots=True)
class Prompts:
    """At least one; `shortened` counts those that were too long for the demo's models."""

    texts: list[str]
    shortened: int


def load_prompts(path: Path | None) -> Prompts:
    """One prompt a line, or JSON lines with a member "prompt"; empty ones do not count.

    Raises ChildFailed in one line when there is none.
    """
    source = OWN if path is None else path
    try:
        lines = source.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise ChildFailed(f"the prompts in {source} are not UTF-8 text") from None
    except OSError as error:
        raise ChildFailed(f"cannot read the prompts in {source}: {error.strerror}") from error
    prompts = [text for line in lines if (text := _prompt(line.strip()))]
    if not prompts:
        raise ChildFailed(f'no prompt in {source}: one a line, or JSON lines with a member "prompt"')
    texts = [fitted(text) for text in prompts]
    return Prompts(texts, sum(a != b for a, b in zip(texts, prompts, strict=True)))


def fitted(text: str, limit_bytes: int = MAX_BYTES) -> str:
    """The beginning of the text in at most `limit_bytes` of UTF-8, whole characters."""
    return text.encode("utf-8", "replace")[:limit_bytes].decode("utf-8", "ignore").strip()


def _prompt(line: str) -> str:
    if not line.startswith("{"):
        return line
    try:
        value = json.loads(line)
    except ValueError:
        return line
    return str(value["prompt"]).strip() if isinstance(value, dict) and "prompt" in value else line
