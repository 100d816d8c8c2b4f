"""Runs every test under coverage (child processes included) and closes with pytest's summary line.

`tools/run_tests.py [pytest arguments]`; with arguments the coverage bar does not apply. The exit status is
pytest's, or that of `coverage report` when the bar is missed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORKERS = 2
COVERAGE = [sys.executable, "-m", "coverage"]


def main(arguments: list[str]) -> int:
    os.chdir(ROOT)
    for stale in ROOT.glob(".coverage*"):
        if stale.is_file():
            stale.unlink()
    tests, closing_line = _run_pytest(arguments)
    subprocess.run([*COVERAGE, "combine", "--quiet"], check=False)
    report = subprocess.run([*COVERAGE, "report", *(["--fail-under=0"] if arguments else [])], check=False)
    print(f"tests: {closing_line}", flush=True)
    return tests or report.returncode


def _run_pytest(arguments: list[str]) -> tuple[int, str]:
    """Exit status and last line of pytest, whose output is passed on as it comes."""
    # Tests mostly wait for processes and timers, so two at a time share the machine well. A file's tests stay
    # together: they share fixtures that are dear.
    side_by_side = ["-n", str(WORKERS), "--dist", "loadfile"]
    command = [*COVERAGE, "run", "-m", "pytest", "--color=no", *side_by_side, *arguments]
    # Unbuffered, so that a hanging test can be told from a slow one.
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=_environment())
    assert child.stdout is not None
    last = ""
    for raw in child.stdout:
        sys.stdout.buffer.write(raw)
        sys.stdout.buffer.flush()
        last = raw.decode("utf-8", "replace").strip() or last
    return child.wait(), last


def _environment() -> dict[str, str]:
    """The caller's settings for Tidegate would change what the tests see."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    if "TIDEGATE_CACHE" in os.environ:
        kept["TIDEGATE_CACHE"] = os.environ["TIDEGATE_CACHE"]
    return {**kept, "PYTHONUNBUFFERED": "1"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
