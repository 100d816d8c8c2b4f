"""Native work of this package in a process of its own; the answers are those of native_task."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from serving.engines.llama_cpp.isolate import isolate
from serving.engines.llama_cpp.native import Model, NativeError, start_backend
from serving.engines.llama_cpp.prepare_child import BACKGROUND, quantize
from serving.engines.llama_cpp.quality import perplexity


def score_without(task: dict[str, Any]) -> float:
    """Perplexity on a text after `layers` of the source were left out."""
    os.nice(BACKGROUND)
    target = Path(task["target"])
    try:
        quantize(task)
        return perplexity(Model(str(target)), task["text"], threads=task["threads"])
    finally:
        target.unlink(missing_ok=True)


_TASKS = {"score_without": score_without}


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main(argument: str) -> int:
    task = json.loads(argument)
    isolate(task["parent_pid"])
    start_backend(debug=task["debug"])
    try:
        say({"done": _TASKS[task["task"]](task)})
    except NativeError as error:
        say({"refused": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
