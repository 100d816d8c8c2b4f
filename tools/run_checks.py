"""Runs every static check, prints one line for each, and the output of those that fail.

Exit status 1 if any failed. `tools/run_checks.py NAME...` runs only those.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
PACKAGES = ("tidegate", "gateway", "edge_node", "cloud_node", "serving", "simulator", "tidegate_cli")
TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class Result:
    ok: bool
    output: str


def tool(*command: str, cwd: Path = ROOT) -> Result:
    program = [str(BIN / command[0]), *command[1:]]
    try:
        done = subprocess.run(
            program,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return Result(False, f"{command[0]} took longer than {TIMEOUT_S} s")
    return Result(done.returncode == 0, done.stdout)


def types() -> Result:
    packages = [argument for package in PACKAGES for argument in ("-p", package)]
    found = tool("mypy", "--strict", *packages)
    tools = tool("mypy", "--strict", "tools") if found.ok else found
    return Result(found.ok and tools.ok, found.output if not found.ok else tools.output)


def protobuf_code() -> Result:
    """The committed protobuf code is what protos/ generates now."""
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run(
            ["bash", "tools/gen_proto.sh", folder],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if made.returncode != 0:
            return Result(False, made.stdout + made.stderr)
        return compare_trees(Path(folder), ROOT / "sdk")


def compare_trees(fresh: Path, committed: Path) -> Result:
    """Every fresh file is committed with the same bytes, and no generated file is left over."""
    wanted = {path.relative_to(fresh) for path in fresh.rglob("*") if path.is_file()}
    present = {path.relative_to(committed) for path in committed.rglob("*_pb2*.py*") if path.suffix != ".pyc"}
    stale = [
        name
        for name in sorted(wanted | present)
        if name not in wanted
        or not (committed / name).is_file()
        or (fresh / name).read_bytes() != (committed / name).read_bytes()
    ]
    lines = [f"stale: {committed.name}/{name}" for name in stale]
    return Result(not stale, "\n".join([*lines, "run `make proto` and commit"] if stale else []))


def configuration_reference() -> Result:
    return tool("python", "tools/gen_config_docs.py", "--check")


def dockerfiles() -> Result:
    found = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "deploy" / "docker").glob("Dockerfile.*"))
    return tool("hadolint", *found) if found else Result(False, "no Dockerfile in deploy/docker")


CHECKS: dict[str, Callable[[], Result]] = {
    "lint": lambda: tool("ruff", "check", "."),
    "format": lambda: tool("ruff", "format", "--check", "."),
    "types": types,
    "imports": lambda: tool("lint-imports", "--no-logo"),
    "protos": lambda: tool("buf", "lint", cwd=ROOT / "protos"),
    "protobuf-code": protobuf_code,
    "configuration": configuration_reference,
    "dockerfiles": dockerfiles,
}


def main(arguments: list[str]) -> int:
    unknown = [name for name in arguments if name not in CHECKS]
    if unknown:
        print(f"no check {unknown[0]!r}; there are: {' '.join(CHECKS)}", file=sys.stderr)
        return 2
    names = arguments or list(CHECKS)
    failed = []
    for name in names:
        started = time.monotonic()
        result = CHECKS[name]()
        print(
            f"{name:14} {'ok' if result.ok else 'FAILED':7} {time.monotonic() - started:5.1f} s", flush=True
        )
        if not result.ok:
            failed.append(name)
            print(result.output.rstrip(), flush=True)
    if failed:
        print(f"checks: {len(failed)} of {len(names)} failed: {' '.join(failed)}")
        return 1
    print(f"checks: {len(names)} passed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
