"""Which layers of a model do least harm when they are left out. The choice is pure; the measuring is not.

Dropping whole layers is the only pruning offered: it needs no data, keeps every kernel, and its harm can be
measured in a minute. Cutting width (heads, feed-forward columns) without training data destroys a model.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp.catalog import file_digest
from serving.engines.llama_cpp.gguf_check import read_gguf
from serving.engines.llama_cpp.native_task import Progress, run_task
from serving.engines.llama_cpp.prepare import CALIBRATION_TEXT, model_stem

_MODULE = "serving.engines.llama_cpp.variants.child"
# About a thousand tokens: enough to tell a vital layer from a spare one.
SLICE_CHARACTERS = 4_600
# Fast to make and to run on every CPU; layers rank the same in other types.
SEARCH_TYPE = "Q4_0"
_JOINT_CANDIDATES = 4

Score = Callable[[tuple[int, ...]], float | None]
"""Perplexity without these layers; None when there is no time left to measure it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """`singles` is the perplexity without each one layer, as far as they were measured."""

    layers: tuple[int, ...]
    singles: dict[int, float]


def choose(count: int, candidates: Sequence[int], score: Score) -> Choice | None:
    """Greedy: the least harmful layer first, then whichever of the next best does least harm beside it.

    None when nothing could be measured. What time did not allow is judged by the single layers.
    """
    measured = {layer: score((layer,)) for layer in spread(candidates)}
    singles = {layer: value for layer, value in sorted(measured.items()) if value is not None}
    if len(singles) < count or count < 1:
        return None
    ranked = sorted(singles, key=lambda layer: (singles[layer], layer))
    chosen: tuple[int, ...] = (ranked[0],)
    while len(chosen) < count:
        rest = [layer for layer in ranked if layer not in chosen][:_JOINT_CANDIDATES]
        joint = {layer: score(tuple(sorted((*chosen, layer)))) for layer in rest}
        known = {layer: value for layer, value in joint.items() if value is not None}
        best = min(known, key=lambda layer: known[layer]) if known else rest[0]
        chosen = tuple(sorted((*chosen, best)))
    return Choice(chosen, singles)


def spread(layers: Sequence[int]) -> list[int]:
    """All of them, coarsely first: a search cut short has seen every region."""
    return [*layers[::4], *layers[2::4], *layers[1::2]]


def check_layers(layers: Sequence[int], total: int) -> tuple[int, ...]:
    """The layers in order. Raises EngineUnavailable for what no model of `total` layers survives."""
    for layer in layers:
        if not 0 < layer < total - 1:
            raise EngineUnavailable(
                f"layer {layer} cannot be pruned: the model has the layers 0 to {total - 1}, "
                "and the first and last are vital"
            )
    if len(set(layers)) != len(layers) or not layers:
        raise EngineUnavailable("name each layer to prune once, at least one")
    check_count(len(layers), total)
    return tuple(sorted(layers))


def check_count(count: int, total: int) -> None:
    """Raises EngineUnavailable for more layers than a model of `total` can lose."""
    if count > min(total // 2, total - 2):
        raise EngineUnavailable(
            f"{count} of {total} layers are too many: at most half can go, and the first and last stay"
        )


class LayerSearch:
    """Measures layers of `source` for up to `max_s`, keeping every figure in `folder` for the next time."""

    def __init__(
        self,
        source: Path,
        folder: Path,
        *,
        threads: int = 1,
        max_s: float = 600.0,
        progress: Progress = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        header = read_gguf(source)
        self._source = source
        self._total = header.number("block_count")
        self._notes = folder / f"{model_stem(source, header.header.quantization)}.layers.json"
        self._threads = threads
        self._max_s = max_s
        self._progress = progress
        self._clock = clock
        self._until = 0.0
        self._text = CALIBRATION_TEXT.read_text(encoding="utf-8")[:SLICE_CHARACTERS]
        # Figures of another source, text or type must not be mixed with these.
        text_digest = hashlib.sha256(self._text.encode()).hexdigest()
        self._basis = {"source": file_digest(source), "text": text_digest, "type": SEARCH_TYPE}
        self._known = self._load()

    def check_count(self, count: int) -> None:
        """Raises EngineUnavailable for more layers than the model can lose. Measures nothing."""
        check_count(count, self._total)

    def choose(self, count: int) -> Choice:
        """The `count` layers to leave out. Blocks. Raises EngineUnavailable."""
        self.check_count(count)
        candidates = range(1, self._total - 1)
        self._until = self._clock() + self._max_s
        choice = choose(count, candidates, self._score)
        if choice is None:
            raise EngineUnavailable(
                f"fewer than {count} layers could be measured within {self._max_s:g} s: allow more with "
                "--max-s, or name the layers"
            )
        if len(choice.singles) < len(candidates):
            seen = f"{len(choice.singles)} of {len(candidates)}"
            self._progress(f"time ran out: chosen among the {seen} layers that were measured")
        return choice

    def whole(self) -> float:
        """Perplexity of the same text and type without any loss of layers, however long it takes."""
        self._until = math.inf
        value = self._score(())
        assert value is not None
        return value

    def _score(self, layers: tuple[int, ...]) -> float | None:
        key = ",".join(map(str, layers))
        if key not in self._known:
            if self._clock() >= self._until:
                return None
            self._known[key] = self._measure(layers)
            self._save()
            without = f"without {key}" if layers else "whole"
            self._progress(f"{without}: perplexity {self._known[key]:.2f}")
        return self._known[key]

    def _measure(self, layers: tuple[int, ...]) -> float:
        scratch = self._notes.with_name(f".{self._notes.stem}.{os.getpid()}.tmp")
        task = {"task": "score_without", "source": str(self._source), "target": str(scratch)}
        details = {
            "layers": layers,
            "quantization": SEARCH_TYPE,
            "text": self._text,
            "threads": self._threads,
        }
        try:
            threads = {"threads": self._threads}
            return float(run_task(_MODULE, task | details | threads, "measuring layers", lambda line: None))
        finally:
            scratch.unlink(missing_ok=True)

    def _load(self) -> dict[str, float]:
        try:
            data = json.loads(self._notes.read_bytes())
            return dict(data["perplexity"]) if data["basis"] == self._basis else {}
        except (OSError, ValueError, TypeError, KeyError):
            return {}

    def _save(self) -> None:
        self._notes.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._notes.with_name(f".{self._notes.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps({"basis": self._basis, "perplexity": self._known}, indent=1) + "\n")
        temporary.replace(self._notes)
