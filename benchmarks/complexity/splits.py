"""score.py's splits and metric over our features: the paired gain over prompt length alone."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from benchmarks.common import CannotMeasure
from benchmarks.complexity.fit import Fitted, fit_need
from benchmarks.complexity.report import LEAST_GAIN
from benchmarks.complexity.rows import Floats, Ids, Matrix, matrix

IN_DOMAIN = "MMLU, 1,500 labels"
UNSEEN = "MMLU, unseen subjects"
GSM = "GSM8K, 5-fold"
TASK_OUT = "LLMRouter, whole task left out"
ONE_SEED = (TASK_OUT,)

# (prompt, weak, strong, group), as score.py gives them.
Row = tuple[str, float, float, str]


def load(folder: Path) -> ModuleType:
    """score.py of the data folder. Raises CannotMeasure."""
    path = folder / "score.py"
    spec = importlib.util.spec_from_file_location("score", path)
    if not path.is_file() or not (folder / "routing").is_dir() or spec is None or spec.loader is None:
        raise CannotMeasure(f"no routing data in {folder}: set DATA to a folder with score.py and routing/")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def untouched(prompt: str) -> bool:
    """True for the half of the prompts that no choice of features or penalties was made on."""
    return bool(crc32(prompt.encode("utf-8", "surrogatepass")) & 1)


@dataclass(frozen=True, slots=True)
class Gains:
    """APGR minus that of length alone, one value per seed (or per task)."""

    all_rows: list[float]
    untouched_rows: list[float]

    def mean(self) -> float:
        return float(np.mean(self.all_rows))

    def half_width(self) -> float:
        """Of the 95 % interval of the mean over seeds (or tasks)."""
        return float(1.96 * np.std(self.all_rows, ddof=1) / np.sqrt(len(self.all_rows)))


class Rig:
    """The features of all prompts, made once."""

    def __init__(self, folder: Path, vectors: npt.NDArray[np.int8]) -> None:
        self.score: Any = load(folder)
        rows = [row for name in ("mmlu", "gsm8k", "llmrouter") for row in self.score.pairs(name)]
        prompts = list(dict.fromkeys(row[0] for row in rows))
        self._at = {prompt: i for i, prompt in enumerate(prompts)}
        self._all = matrix(prompts, vectors)

    def matrix(self, rows: Sequence[Row]) -> Matrix:
        return self._all.take(self._places(rows))

    def prior(self, half: int) -> Fitted:
        """A model to start from, of one half of the prompts of all tables."""
        files = [
            [row for row in self.score.pairs(name) if untouched(row[0]) == bool(half)]
            for name in ("mmlu", "gsm8k", "llmrouter")
        ]
        gains = [np.array([row[2] - row[1] for row in rows]) for rows in files]
        target = np.concatenate([gain - gain.mean() for gain in gains])
        return fit_need(self.matrix([row for rows in files for row in rows]), target)

    def gains(self, seeds: int, half: int | None = None, base: Fitted | None = None) -> dict[str, Gains]:
        """With `half` only that half of the prompts exists: 0 was developed on, 1 was not."""
        found: dict[str, Gains] = {}
        for seed in range(seeds):
            for name, parts in self.score.splits(seed).items():
                if name not in (IN_DOMAIN, UNSEEN, GSM, TASK_OUT) or (seed and name in ONE_SEED):
                    continue
                if half is not None:
                    parts = _halved(parts, half, labels=1500 if name == IN_DOMAIN else None)
                needs = [self._need(train, test, base) for train, test in parts]
                if name == TASK_OUT:  # tasks differ in level, so each is judged alone
                    judged = [([need], [test]) for need, (_, test) in zip(needs, parts, strict=True)]
                else:
                    judged = [(needs, [test for _, test in parts])]
                gains = found.setdefault(name, Gains([], []))
                for each, tests in judged:
                    need, rows = np.concatenate(each), [row for test in tests for row in test]
                    if np.mean([row[2] - row[1] for row in rows]) < LEAST_GAIN:
                        continue
                    gains.all_rows.append(self._gain(need, rows))
                    kept = np.array([untouched(row[0]) for row in rows])
                    others = [r for r, k in zip(rows, kept, strict=True) if k]
                    # Half of a small task may have no difference between the models to speak of.
                    if np.mean([r[2] - r[1] for r in others] or [0.0]) >= LEAST_GAIN:
                        gains.untouched_rows.append(self._gain(need[kept], others))
        return found

    def _need(self, train: Sequence[Row], test: Sequence[Row], base: Fitted | None) -> Floats:
        target = np.array([row[2] - row[1] for row in train])
        return fit_need(self.matrix(train), target, base).need(self.matrix(test))

    def _gain(self, need: Floats, rows: Sequence[Row]) -> float:
        weak, strong = [row[1] for row in rows], [row[2] for row in rows]
        length = [len(row[0]) for row in rows]
        return float(self.score.apgr(need, weak, strong) - self.score.apgr(length, weak, strong))

    def _places(self, rows: Sequence[Row]) -> Ids:
        return np.array([self._at[row[0]] for row in rows])


Parts = Sequence[tuple[Sequence[Row], Sequence[Row]]]


def _halved(parts: Parts, half: int, labels: int | None) -> Parts:
    """One half's rows of each part. `labels`: how many of all rows of the only part are to train on."""

    def kept(rows: Sequence[Row]) -> list[Row]:
        return [row for row in rows if untouched(row[0]) == bool(half)]

    if labels is not None:
        ((train, test),) = parts
        rows = kept([*train, *test])
        return [(rows[:labels], rows[labels:])]
    return [(kept(train), kept(test)) for train, test in parts]
