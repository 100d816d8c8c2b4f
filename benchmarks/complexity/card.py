"""The model card beside a trained model."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.complexity.report import Report
from gateway.analysis.features import BUCKETS, DENSE_NAMES

INTENDED = """\
**What it is.** A guess, from the prompt alone, of how much a large model's answer would be better than a
small one's. `difficulty` in [0, 1] orders prompts by it. `p_small_ok` is the same order as odds that the
small model of the labels answers well.

**What it is not.** A promise. Its labels are outcomes of the models that answered in the data below, judged
there; they say nothing of other models. A promise about a deployment's answers is certified from that
deployment's own outcomes (docs/complexity.md), or it is not certified."""


def card(found: Report, sources: Mapping[str, str], size: int, extra: str = "") -> str:
    """Markdown: use, data, metrics, calibration."""
    lines = ["# Model card: prompt complexity", "", INTENDED, "", "## Data", ""]
    lines += [f"- `{name}`: {about}" for name, about in sources.items()]
    lines += [
        "- word vectors: from all-MiniLM-L6-v2 (Apache-2.0), `benchmarks/complexity/vectors.py`",
        "",
        f"{found.rows} labelled prompts. The small model was right on {found.weak_mean:.3f}, the large one "
        f"on {found.strong_mean:.3f}.",
    ]
    lines += [
        "",
        "## Inputs and graph",
        "",
        f"The first and last 2,000 characters and at most 512 words: {len(DENSE_NAMES)} numbers, the",
        f"distinct words, and hashed words and word pairs (lower-cased, crc32 modulo {BUCKETS:,}).",
        f"{size:,} bytes, run by onnxruntime on one thread. Word lists and vectors are English: elsewhere",
        "only length and marks speak.",
        "",
        "## What it reaches on rows that it did not see",
        "",
        "```",
        found.text(),
        "```",
        "",
        "| odds said | what came | rows |",
        "|---|---|---|",
    ]
    lines += [f"| {b.said:.3f} | {b.came:.3f} | {b.count} |" for b in found.curve]
    if extra:
        lines += ["", extra]
    return "\n".join(lines) + "\n"
