"""`python -m gateway.analysis [--model DIR]`: JSON lines through the complexity model.

Reads {"prompt": ...} from standard input, writes {"p_small_ok": ..., "difficulty": ..., "ms": ...}.
Exit code: 0 done, 1 where a line could not be used or the model cannot be.
"""

from __future__ import annotations

import argparse
import gc
import signal
import sys
import time
from pathlib import Path

from gateway.analysis.difficulty import DifficultyModel, ModelUnusable
from gateway.analysis.stream import judge_lines

WARM_UPS = 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="tidegate complexity", description=__doc__)
    parser.add_argument("--model", type=Path, help="folder of a trained model, or its model.onnx")
    try:
        model = DifficultyModel(parser.parse_args().model)
    except ModelUnusable as error:
        sys.stderr.write(f"tidegate complexity: {error}\n")
        return 1
    # The runtime allocates at first use; a measured cost should not be that.
    for _ in range(WARM_UPS):
        model.judge("What is " * 600, total_chars=4800, turns=1)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    failed = judge_lines(model, sys.stdin.buffer, sys.stdout, time.perf_counter)
    if failed:
        sys.stderr.write(f"tidegate complexity: lines that could not be used: {failed}\n")
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
