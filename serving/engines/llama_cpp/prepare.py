"""Requantize a GGUF file for this device and measure what each variant costs in quality.

    python -m serving.engines.llama_cpp.prepare SRC --to Q4_0,Q8_0 --out DIR

For each quantization this writes DIR/NAME.QUANTIZATION.gguf and its catalog entry beside it. Files appear
whole or not at all; what is there already and unchanged is kept. The native work runs in child processes.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp.bundled import default_models_dir
from serving.engines.llama_cpp.catalog import CatalogEntry, file_digest, load_entry, write_entry
from serving.engines.llama_cpp.gguf_check import check_gguf, fallback_tensors, read_gguf
from serving.engines.llama_cpp.native_task import Progress, run_task

CALIBRATION_TEXT = Path(__file__).with_name("calibration.txt")
_MODULE = "serving.engines.llama_cpp.prepare_child"
_SPARE_BYTES = 64 * 1024 * 1024
# How much larger than any 4-bit source a file of these types may become.
_GROWTH = {"F32": 8, "F16": 4, "BF16": 4}


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
    layers: Sequence[int] = (),
    threads: int = 1,
    progress: Progress = lambda line: None,
) -> list[PreparedModel]:
    """Each variant of `source`, made or found. Blocks. Raises EngineUnavailable with one clear sentence.

    `model` is the name that users will ask for; by default the file's own without its quantization. `layers`
    are left out of every variant (the caller has chosen them with care). Several processes may prepare into
    one directory: they wait for each other.
    """
    header = check_gguf(source)
    stem = model_stem(source, header.quantization)
    pruned = f".pruned-{','.join(map(str, sorted(layers)))}" if layers else ""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with _locked(out_dir / ".prepare.lock", progress):
            source_digest = file_digest(source)
            name, context = model or stem.lower(), header.context_tokens
            job = _Job(source, source_digest, name, context, tuple(sorted(layers)), threads, progress)
            return [job.variant(out_dir / f"{stem}{pruned}.{q}.gguf", q) for q in quantizations]
    except OSError as error:
        raise EngineUnavailable(f"cannot prepare models in {out_dir}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class _Job:
    source: Path
    source_digest: str
    model: str
    context_tokens: int
    layers: tuple[int, ...]
    threads: int
    progress: Progress

    def variant(self, target: Path, quantization: str) -> PreparedModel:
        if target.exists() and target.samefile(self.source):
            raise EngineUnavailable(f"{target} is the source itself: name another folder, or another type")
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
        needed = self.source.stat().st_size * _GROWTH.get(quantization, 2) + _SPARE_BYTES
        if shutil.disk_usage(target.parent).free < needed:
            raise EngineUnavailable(f"{target.parent} needs {needed / 1e6:.0f} MB of free disk space")
        self.progress(f"{target.name}: quantizing")
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        task = {"task": "quantize", "source": str(self.source), "target": str(temporary)}
        details = {"quantization": quantization, "layers": self.layers}
        try:
            self._run(task | details, f"quantizing to {quantization}")
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
            pruned_layers=self.layers,
            fallback_tensors=len(fallback_tensors(read_gguf(target), quantization)),
        )

    def _perplexity(self, target: Path) -> float:
        self.progress(f"{target.name}: measuring perplexity")
        task = {"task": "perplexity", "path": str(target), "text": str(CALIBRATION_TEXT)}
        return float(self._run(task, f"measuring {target.name}"))

    def _run(self, task: dict[str, Any], what: str) -> Any:
        return run_task(_MODULE, task | {"threads": self.threads}, what, self.progress)


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another process is preparing models here: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def model_stem(source: Path, quantization: str) -> str:
    """The file's name without its quantization: SmolLM2.Q4_1.gguf -> SmolLM2."""
    stem = source.name.removesuffix(".gguf")
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
