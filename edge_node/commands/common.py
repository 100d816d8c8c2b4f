"""What the subcommands share: naming a model, arguments, and where words go."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp.bundled import MODEL, bundled_model, default_models_dir
from serving.engines.llama_cpp.gguf_check import unknown_quantization

BUNDLED = "bundled"


def parser_of(name: str, about: str) -> argparse.ArgumentParser:
    """With the argument MODEL, which every command takes, and --json."""
    parser = argparse.ArgumentParser(prog=f"tidegate-edge {name}", description=about)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=f"a GGUF file, `{BUNDLED}`, or the name of a file in the models folder",
    )
    parser.add_argument("--json", action="store_true", help="print JSON; progress goes to stderr")
    return parser


def add_making(parser: argparse.ArgumentParser) -> None:
    """Arguments of commands that write model files."""
    parser.add_argument(
        "--out", type=Path, default=default_models_dir(), metavar="DIR", help="models folder (%(default)s)"
    )
    parser.add_argument("--name", default="", help="name that users will ask for")
    add_threads(parser)


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=positive, default=1, help="threads that compute (%(default)s)")


def positive(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def quantizations(text: str) -> list[str]:
    """ "q8_0, Q4_0" -> ["Q8_0", "Q4_0"], each once."""
    names = list(dict.fromkeys(word.strip().upper() for word in text.split(",") if word.strip()))
    if not names:
        raise argparse.ArgumentTypeError("name at least one, like Q4_0")
    if problem := unknown_quantization(names):
        raise argparse.ArgumentTypeError(problem)
    return names


def find_model(name: str, folder: Path) -> Path:
    """The file that MODEL stands for. Raises EngineUnavailable."""
    if name == BUNDLED:
        return bundled_model()
    path = Path(name).expanduser()
    if path.is_file():
        return path
    for candidate in (folder / name, folder / f"{name}.gguf"):
        if candidate.is_file():
            return candidate
    there = ", ".join(sorted(file.name for file in folder.glob("*.gguf"))) or "none"
    raise EngineUnavailable(f"there is no model {name}; in {folder}: {there}")


def default_name(model: str) -> str:
    """The name that users ask for, where the file's own is not it; "" keeps the file's."""
    return MODEL if model == BUNDLED else ""


def teller(*, is_json: bool) -> Callable[[str], None]:
    """Where progress goes: stdout, or stderr when stdout is for JSON."""
    stream = sys.stderr if is_json else sys.stdout

    def tell(line: str) -> None:
        stream.write(line + "\n")
        stream.flush()

    return tell


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def say_json(data: Any) -> None:
    say(json.dumps(data, indent=1))
