"""Every variant of a model measured on this device, next to its source: what each step cost and gained."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp.catalog import CatalogEntry, Figures, file_digest, load_entry, write_entry
from serving.engines.llama_cpp.gguf_check import read_gguf
from serving.engines.llama_cpp.identity import hardware_class
from serving.engines.llama_cpp.native_task import Progress, run_task
from serving.engines.llama_cpp.prepare import CALIBRATION_TEXT, PreparedModel, model_stem, prepare
from serving.engines.llama_cpp.variants.layers import LayerSearch, check_count
from serving.engines.llama_cpp.variants.plan import Load, model_bytes, require_fit

_MODULE = "serving.engines.llama_cpp.variants.child"
_PREPARE_MODULE = "serving.engines.llama_cpp.prepare_child"
_PRUNED = "pruned:"
_PRUNED_TYPE = "Q4_0"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A variant to measure: a quantization, and how many layers are left out of it."""

    quantization: str
    pruned: int = 0

    @classmethod
    def parse(cls, text: str) -> Wanted:
        """From "Q8_0", "pruned:2" or "pruned:2:Q8_0". Raises ValueError."""
        word = text.strip()
        if not word.lower().startswith(_PRUNED):
            return cls(word.upper())
        count, _, quantization = word[len(_PRUNED) :].partition(":")
        if not count.isdecimal() or int(count) < 1:
            raise ValueError(f"{text}: write pruned:COUNT or pruned:COUNT:QUANTIZATION")
        return cls(quantization.upper() or _PRUNED_TYPE, int(count))

    @property
    def name(self) -> str:
        suffix = "" if self.quantization == _PRUNED_TYPE else f":{self.quantization}"
        return f"{_PRUNED}{self.pruned}{suffix}" if self.pruned else self.quantization


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One file. `wanted` repeats it by one command (`--variants WANTED`); "" is the source itself."""

    path: Path
    wanted: str
    entry: CatalogEntry
    figures: Figures

    @property
    def perplexity(self) -> float:
        assert self.entry.perplexity is not None
        return self.entry.perplexity


@dataclass(frozen=True, slots=True)
class ReportSettings:
    """How everything is measured; `today` is a date like 2026-01-31."""

    folder: Path
    today: str
    threads: int = 1
    slots: int = 4
    context_tokens: int = 512
    search_max_s: float = 600.0
    again: bool = False
    model: str = ""


def existing_variants(source: Path, folder: Path) -> list[Wanted]:
    """What was made from this source before and is still there."""
    stem = model_stem(source, read_gguf(source).header.quantization)
    digest = file_digest(source)
    entries = (load_entry(path) for path in sorted(folder.glob(f"{stem}.*.gguf")))
    found = (entry for entry in entries if entry is not None and entry.source_digest == digest)
    return list(dict.fromkeys(Wanted(e.quantization, len(e.pruned_layers)) for e in found))


def measure_all(
    source: Path, wanted: Sequence[Wanted], settings: ReportSettings, progress: Progress
) -> list[ReportRow]:
    """The source first, then each variant, made where it is missing. Blocks for minutes.

    What was measured before with the same settings is not measured again. A file that this device has no
    memory for is left out with a word to `progress`. Raises EngineUnavailable, also when nothing is left.
    """
    total = read_gguf(source).number("block_count")
    for each in wanted:
        check_count(each.pruned, total)
    rows = []
    if _fits(source, settings, progress):
        rows.append(_source_row(source, settings, progress))
    own = read_gguf(source).header.quantization
    for each in wanted:
        if each == Wanted(own):
            continue
        made = _make(source, each, settings, progress)
        if not _fits(made.path, settings, progress):
            continue
        figures = _figures(made.entry.figures, made.path, settings, progress)
        entry = dataclasses.replace(made.entry, figures=figures)
        if entry != made.entry:
            write_entry(made.path, entry)
        rows.append(ReportRow(made.path, each.name, entry, figures))
    if not rows:
        raise EngineUnavailable("no variant fits this device: ask for fewer --slots or less --context")
    return rows


def _fits(path: Path, settings: ReportSettings, progress: Progress) -> bool:
    load = Load(settings.slots, settings.context_tokens)
    try:
        require_fit(read_gguf(path), model_bytes(path), load)
    except EngineUnavailable as error:
        progress(f"{path.name} is left out: {error}")
        return False
    return True


def _make(source: Path, wanted: Wanted, settings: ReportSettings, progress: Progress) -> PreparedModel:
    layers: tuple[int, ...] = ()
    if wanted.pruned:
        search = LayerSearch(
            source,
            settings.folder,
            threads=settings.threads,
            max_s=settings.search_max_s,
            progress=progress,
        )
        layers = search.choose(wanted.pruned).layers
    (made,) = prepare(
        source,
        [wanted.quantization],
        settings.folder,
        model=settings.model,
        layers=layers,
        threads=settings.threads,
        progress=progress,
    )
    return made


def _figures(known: Figures | None, path: Path, settings: ReportSettings, progress: Progress) -> Figures:
    """Those that are known, where they were measured like this; else new ones."""
    from_settings: dict[str, Any] = {
        "hardware_class": hardware_class(settings.threads),
        "threads": settings.threads,
        "slots": settings.slots,
        "context_tokens": settings.context_tokens,
    }
    if known is not None and not settings.again:
        here = asdict(known)
        if all(here[key] == value for key, value in from_settings.items()):
            return known
    task = {"task": "measure", "path": str(path), **from_settings}
    progress(f"{path.name}: measuring speed, memory and answers")
    measured = run_task(_MODULE, task, f"measuring {path.name}", progress)
    return Figures(measured_on=settings.today, **from_settings, **measured)


def source_notes(source: Path, digest: str, folder: Path) -> Path:
    """Stands for the source in the models folder: its catalog entry lies beside this path."""
    return folder / f"{source.name}.source-{digest.removeprefix('sha256:')[:8]}"


def _source_row(source: Path, settings: ReportSettings, progress: Progress) -> ReportRow:
    """The source's figures are kept in the models folder: its own may belong to somebody else."""
    header = read_gguf(source).header
    digest, text = file_digest(source), file_digest(CALIBRATION_TEXT)
    settings.folder.mkdir(parents=True, exist_ok=True)
    notes = source_notes(source, digest, settings.folder)
    entry = load_entry(notes)
    if entry is None or entry.digest != digest or entry.perplexity_text != text:
        stat = source.stat()
        task = {"task": "perplexity", "path": str(source), "text": str(CALIBRATION_TEXT)}
        what = f"measuring {source.name}"
        value = float(run_task(_PREPARE_MODULE, task | {"threads": settings.threads}, what, progress))
        name = settings.model or model_stem(source, header.quantization).lower()
        entry = CatalogEntry(
            name,
            header.quantization,
            digest,
            stat.st_size,
            stat.st_mtime_ns,
            header.context_tokens,
            value,
            text,
        )
    figures = _figures(entry.figures, source, settings, progress)
    entry = dataclasses.replace(entry, figures=figures)
    write_entry(notes, entry)
    return ReportRow(source, "", entry, figures)
