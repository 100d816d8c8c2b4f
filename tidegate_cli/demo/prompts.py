"""Prompts of the demo: its own, or anybody's."""

from __future__ import annotations

import json
from pathlib import Path

from tidegate_cli.stack.process import ChildFailed

OWN = Path(__file__).with_name("prompts.txt")
# Longest prompt that surely fits the demo models' context of 2,048 tokens beside an answer.
MAX_CHARS = 3000


def load_prompts(path: Path | None) -> tuple[list[str], int]:
    """The prompts and how many were left out for their length.

    One prompt a line, or JSON lines with a member "prompt". Raises ChildFailed when none is left.
    """
    source = OWN if path is None else path
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ChildFailed(f"cannot read the prompts in {source}: {error}") from error
    prompts = [_prompt(line) for line in lines if line.strip()]
    kept = [p for p in prompts if 0 < len(p) <= MAX_CHARS]
    if not kept:
        raise ChildFailed(f"no usable prompt in {source}: one a line, at most {MAX_CHARS} characters each")
    return kept, len(prompts) - len(kept)


def _prompt(line: str) -> str:
    if not line.lstrip().startswith("{"):
        return line.strip()
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return line.strip()
    return str(value["prompt"]).strip() if isinstance(value, dict) and "prompt" in value else line.strip()
