"""Makes the shipped prior from public outcome tables: gateway/analysis/prior.onnx and PRIOR.md.

    DATA=DIR python -m benchmarks.complexity.prior [--vectors FILE.npy]

Trained on RouteLLM's MMLU and GSM8K outcomes and LLMRouter's table, and on everyday.jsonl: prompts of daily
use, which exams lack, with a need set by hand. `--vectors` replaces the word vectors that the prior
carries."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np

from benchmarks.common import CannotMeasure
from benchmarks.complexity.card import card
from benchmarks.complexity.export import graph, vectors_of
from benchmarks.complexity.fit import fit_calibrated
from benchmarks.complexity.report import report
from benchmarks.complexity.rows import Labelled, matrix
from benchmarks.complexity.splits import load
from benchmarks.complexity.train import targets
from gateway.analysis.difficulty import PRIOR_PATH

EVERYDAY = Path(__file__).with_name("everyday.jsonl")
# Each of the few everyday prompts counts as much as this many labels.
REPEATS = 8
SOURCES = {
    "mmlu_mixtral_gpt4.csv": "7,291 questions, Mixtral-8x7B and GPT-4-1106 right or not; RouteLLM evaluation "
    "data, Apache-2.0",
    "gsm8k_mixtral_gpt4.csv": "654 questions, the same two models; RouteLLM evaluation data, Apache-2.0",
    "llmrouter_9_models.jsonl": "4,076 questions of 11 tasks, Llama-3.1-8B-Instruct and "
    "Llama-3.1-Nemotron-51B-Instruct; LLMRouter, MIT",
    "everyday.jsonl": "prompts of daily use with a need set by hand, ours, Apache-2.0; they take part in the "
    "order and in no figure below",
}
HOW = """\
All labels are outcomes of other models than yours. Each table's mean gain was taken out before fitting,
because the tables come from different pairs of models. `make bench-complexity` measures the same method on
held-out splits."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vectors", type=Path, help="word vectors made by benchmarks.complexity.vectors")
    args = parser.parse_args()
    vectors = vectors_of(PRIOR_PATH) if args.vectors is None else np.load(args.vectors)
    try:
        score = load(Path(os.environ.get("DATA", ".")))
    except CannotMeasure as error:
        print(f"prior: {error}", file=sys.stderr)
        return 2
    files = [
        [
            Labelled(prompt, weak, strong, f"{name}/{group}")
            for prompt, weak, strong, group in score.pairs(name)
        ]
        for name in ("mmlu", "gsm8k", "llmrouter")
    ]
    rows = [each for file in files for each in file]
    weak, gain = targets(files)
    told = [json.loads(line) for line in EVERYDAY.read_text(encoding="utf-8").splitlines()] * REPEATS
    prompts = [each.prompt for each in rows] + [each["prompt"] for each in told]
    # Easy everyday prompts are answered well by any model, and nobody knows of the hard ones: the mean.
    good = np.array([1.0 if each["need"] < 0 else float(weak.mean()) for each in told])
    need = np.concatenate([gain, [each["need"] for each in told]])
    fitted = fit_calibrated(matrix(prompts, vectors), np.concatenate([weak, good]), need)
    data = graph(fitted, vectors, {"tidegate.kind": "prior"}).SerializeToString(deterministic=True)
    PRIOR_PATH.write_bytes(data)
    found = report(matrix([each.prompt for each in rows], vectors), rows, gain)
    PRIOR_PATH.with_name("PRIOR.md").write_text(card(found, SOURCES, len(data), HOW), encoding="utf-8")
    print(found.text())
    print(f"{PRIOR_PATH.name}: {len(data)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
