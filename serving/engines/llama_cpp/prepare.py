"""Requantize a GGUF file for this device and measure what each variant costs in quality.

    python -m serving.engines.llama_cpp.prepare SRC --to Q4_0,Q8_0 --out DIR

For each quantization this writes DIR/NAME.QUANTIZATION.gguf and its catalog entry beside it. Files appear
whole or not at all; what is there already and unchanged is kept. The native work runs in child processes.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp.bundled import default_models_dir
from serving.engines.llama_cpp.catalog import CatalogEntry, file_digest, load_entry, write_entry
from serving.engines.llama_cpp.gguf_check import check_gguf
from serving.engines.llama_cpp.process import child_environment

CALIBRATION_TEXT = Path(__file__).with_name("calibration.txt")
_MODULE = "serving.engines.llama_cpp.prepare_child"
_SPARE_BYTES = 64 * 1024 * 1024

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class PreparedModel:
    path: Path
    entry: CatalogEntry


def prepare(
    source: Path,
    quantizations: Sequence[str],
    out_dir: Path,
    *,
    model: str = "",
    threads: int = 1,
    progress: Progress = lambda line: None,
) -> list[PreparedModel]:
    """Each variant of `source`, made or found. Blocks. Raises EngineUnavailable with one clear sentence.

    `model` is the name that users will ask for; by default the file's own without its quantization. Several
    processes may prepare into one directory: they wait for each other.
    """
    header = check_gguf(source)
    stem = _without_suffix(source.name.removesuffix(".gguf"), header.quantization)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with _locked(out_dir / ".prepare.lock", progress):
            source_digest = file_digest(source)
            job = _Job(source, source_digest, model or stem.lower(), header.context_tokens, threads, progress)
            return [job.variant(out_dir / f"{stem}.{q}.gguf", q) for q in quantizations]
    except OSError as error:
        raise EngineUnavailable(f"cannot prepare models in {out_dir}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class _Job:
    source: Path
    source_digest: str
    model: str
    context_tokens: int
    threads: int
    progress: Progress

    def variant(self, target: Path, quantization: str) -> PreparedModel:
        entry = self._existing(target)
        if entry is None:
            before = load_entry(target)
            self._quantize(target, quantization)
            entry = self._describe(target, quantization)
            if before is not None and before.digest == entry.digest:
                entry = dataclasses.replace(before, mtime_ns=entry.mtime_ns)
        text_digest = file_digest(CALIBRATION_TEXT)
        if entry.perplexity is None or entry.perplexity_text != text_digest:
            measured = self._perplexity(target)
            entry = dataclasses.replace(entry, perplexity=measured, perplexity_text=text_digest)
        entry = dataclasses.replace(entry, model=self.model)
        if entry != load_entry(target):
            write_entry(target, entry)
        self.progress(f"{target.name}: {entry.bytes / 1e6:.0f} MB, perplexity {entry.perplexity:.2f}")
        return PreparedModel(target, entry)

    def _existing(self, target: Path) -> CatalogEntry | None:
        """The entry of a file that is whole and made from this very source."""
        entry = load_entry(target)
        if entry is None or not target.is_file() or entry.source_digest != self.source_digest:
            return None
        if file_digest(target) != entry.digest:
            self.progress(f"{target.name}: differs from its catalog entry, making it again")
            return None
        return dataclasses.replace(entry, mtime_ns=target.stat().st_mtime_ns)

    def _quantize(self, target: Path, quantization: str) -> None:
        needed = self.source.stat().st_size * 2 + _SPARE_BYTES
        if shutil.disk_usage(target.parent).free < needed:
            raise EngineUnavailable(f"{target.parent} needs {needed / 1e6:.0f} MB of free disk space")
        self.progress(f"{target.name}: quantizing")
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        task = {"task": "quantize", "source": str(self.source), "target": str(temporary)}
        try:
            self._run(task | {"quantization": quantization}, f"quantizing to {quantization}")
            check_gguf(temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def _describe(self, target: Path, quantization: str) -> CatalogEntry:
        stat = target.stat()
        return CatalogEntry(
            model=self.model,
            quantization=quantization,
            digest=file_digest(target),
            bytes=stat.st_size,
            mtime_ns=stat.st_mtime_ns,
            context_tokens=self.context_tokens,
            source_digest=self.source_digest,
        )

    def _perplexity(self, target: Path) -> float:
        self.progress(f"{target.name}: measuring perplexity")
        task = {"task": "perplexity", "path": str(target), "text": str(CALIBRATION_TEXT)}
        return float(self._run(task, f"measuring {target.name}"))

    def _run(self, task: dict[str, Any], what: str) -> Any:
        task = task | {"threads": self.threads, "parent_pid": os.getpid(), "debug": False}
        command = [sys.executable, "-m", _MODULE, json.dumps(task)]
        environment = child_environment(dict(os.environ), bounded_spin=False)
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        ) as process:
            try:
                return self._follow(process, what)
            finally:
                process.kill()

    def _follow(self, process: subprocess.Popen[bytes], what: str) -> Any:
        outcome: dict[str, Any] | None = None
        for line in process.stdout or ():
            message = json.loads(line)
            if "share" in message:
                self.progress(f"{what}: {message['share']:.0%}")
            else:
                outcome = message
        status = process.wait()
        if outcome is None:
            how = f"signal {-status}" if status < 0 else f"status {status}"
            raise EngineUnavailable(f"{what} crashed ({how}); the source file may be damaged")
        if "refused" in outcome:
            raise EngineUnavailable(f"{what} failed: {outcome['refused']}")
        return outcome["done"]


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another process is preparing models here: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _without_suffix(stem: str, quantization: str) -> str:
    """The name without its quantization: SmolLM2.Q4_1 -> SmolLM2."""
    if quantization and stem.lower().endswith(quantization.lower()):
        return stem[: -len(quantization)].rstrip(".-_") or stem
    return stem


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serving.engines.llama_cpp.prepare", description=__doc__)
    parser.add_argument("source", type=Path, help="the GGUF file")
    parser.add_argument("--to", default="Q4_0,Q8_0", help="quantizations, separated by commas")
    parser.add_argument("--out", type=Path, default=default_models_dir(), help="directory for the variants")
    parser.add_argument("--model", default="", help="name that users will ask for")
    parser.add_argument("--threads", type=int, default=1, help="threads that compute")
    options = parser.parse_args(arguments)

    def show(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    quantizations = [q.strip().upper() for q in options.to.split(",") if q.strip()]
    try:
        prepare(
            options.source,
            quantizations,
            options.out,
            model=options.model,
            threads=options.threads,
            progress=show,
        )
    except EngineUnavailable as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
