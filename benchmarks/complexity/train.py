"""Fits a complexity model on labelled prompts.

    python benchmarks/complexity/train.py --train FILE... --out DIR

Each FILE is a CSV, or one JSON object a line, with the columns prompt, weak and strong: how good the small
and the large model's answer was, in [0, 1]. A column group (or subject, or task) is used for validation
only. DIR gets model.onnx (`tidegate complexity --model DIR` runs it), MODEL_CARD.md and metadata.json."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

# So that the file can be started by its path from anywhere.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.complexity.card import card
from benchmarks.complexity.export import fitted_of, graph, vectors_of
from benchmarks.complexity.fit import Fitted, fit_calibrated, worth_starting_from
from benchmarks.complexity.report import Report, report
from benchmarks.complexity.rows import BadRows, Floats, Labelled, matrix, read
from gateway.analysis.difficulty import FEATURE_SET, MAX_MODEL_BYTES, PRIOR_PATH

LEAST_ROWS = 50
# Gains of prompts that differ by less are equal but for rounding.
LEAST_DIFFERENCE = 1e-6


def targets(files: Sequence[Sequence[Labelled]]) -> tuple[Floats, Floats]:
    """(weak, strong - weak) of all rows. With several files each one's mean gain is taken out.

    Files come from different pairs of models; which pair it was is not what a prompt shows.
    """
    weak = np.array([row.weak for rows in files for row in rows])
    gains = [np.array([row.strong - row.weak for row in rows]) for rows in files]
    if len(gains) > 1:
        gains = [gain - gain.mean() for gain in gains]
    return weak, np.concatenate(gains)


def teaches_order(rows: Sequence[Labelled], gain: Floats) -> bool:
    """Whether some prompt's mean gain differs from another's.

    One prompt alone, or as much gained on each, says nothing of which prompt needs the larger model more.
    """
    numbers: dict[str, int] = {}
    which = [numbers.setdefault(row.prompt, len(numbers)) for row in rows]
    means = np.bincount(which, weights=gain) / np.bincount(which)
    return float(np.ptp(means)) > LEAST_DIFFERENCE


def train(files: Sequence[Sequence[Labelled]], *, from_scratch: bool = False) -> tuple[Fitted, Report]:
    """The model, and what it reaches on rows that it did not see.

    It starts from the shipped prior unless told otherwise, or unless the prior misleads on these labels.
    """
    rows = [row for each in files for row in each]
    if len(rows) < LEAST_ROWS:
        raise BadRows(f"{len(rows)} labelled prompts; at least {LEAST_ROWS} are needed")
    weak, gain = targets(files)
    if not teaches_order(rows, gain):
        raise BadRows(
            f"{len(rows)} labels teach no order: the larger model is as much better on every prompt"
        )
    found = matrix([row.prompt for row in rows], vectors_of(PRIOR_PATH))
    base = None if from_scratch else fitted_of(PRIOR_PATH)
    if base is not None and not worth_starting_from(found, gain, base):
        base = None
    return fit_calibrated(found, weak, gain, base), report(found, rows, gain, base)


def save(out: Path, fitted: Fitted, found: Report, sources: dict[str, str]) -> None:
    """model.onnx, MODEL_CARD.md and metadata.json."""
    facts = {"tidegate.kind": "trained", "tidegate.labels": str(found.rows)}
    data = graph(fitted, vectors_of(PRIOR_PATH), facts).SerializeToString(deterministic=True)
    if len(data) > MAX_MODEL_BYTES:
        raise BadRows(f"the model has {len(data)} bytes, above the limit of {MAX_MODEL_BYTES}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.onnx").write_bytes(data)
    about = {
        "features": FEATURE_SET,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "sources": sources,
        **found.as_dict(),
    }
    (out / "metadata.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    (out / "MODEL_CARD.md").write_text(card(found, sources, len(data)), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--train", type=Path, nargs="+", required=True, metavar="FILE", help="labelled prompts"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the model")
    parser.add_argument("--licence", default="not stated", help="licence of the labels, for the card")
    parser.add_argument("--from-scratch", action="store_true", help="do not start from the shipped prior")
    args = parser.parse_args(argv)
    try:
        fitted, found = train([read(path) for path in args.train], from_scratch=args.from_scratch)
        sources = {path.name: f"{_digest(path)} ({args.licence})" for path in args.train}
        save(args.out, fitted, found, sources)
    except (BadRows, OSError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    print(found.text())
    print(f"{args.out / 'model.onnx'}: written")
    return 0


def _digest(path: Path) -> str:
    return f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


if __name__ == "__main__":
    sys.exit(main())
