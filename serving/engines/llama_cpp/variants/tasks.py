"""A small task: which of a few endings does a model find likeliest? For comparing variants of one model.

Each ending is scored by its mean log probability per character, so that long ones are not at a disadvantage;
the model answers right when the right ending scores highest. With n questions the standard error of the share
is about sqrt(p (1 - p) / n), 6 points at 60: smaller differences mean nothing, perplexity tells more.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.engines.llama_cpp.native import Context, Model, Tokens

QUESTIONS_FILE = Path(__file__).with_name("questions.txt")


@dataclass(frozen=True, slots=True)
class Question:
    """The first of `endings` is right."""

    beginning: str
    endings: tuple[str, ...]


def read_questions(path: Path = QUESTIONS_FILE) -> list[Question]:
    lines = path.read_text(encoding="utf-8").splitlines()
    parts = [line.split("|") for line in lines if line.strip() and not line.startswith("#")]
    return [Question(beginning, tuple(endings)) for beginning, *endings in parts]


def questions_digest(path: Path = QUESTIONS_FILE) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def accuracy(
    model: Model,
    context: Context,
    questions: list[Question],
    progress: Callable[[float], None] = lambda share: None,
) -> float:
    """The share of questions answered right. Uses and empties sequence 0 of the context."""
    right = 0
    for number, question in enumerate(questions):
        scores = score_endings(model, context, question)
        right += max(range(len(scores)), key=lambda ending: scores[ending]) == 0
        progress((number + 1) / len(questions))
    context.clear()
    return right / len(questions)


def score_endings(model: Model, context: Context, question: Question) -> list[float]:
    """Mean log probability per character of each ending after the beginning."""
    context.clear()
    begin = model.tokenize(question.beginning, add_special=model.adds_bos, parse_special=False)
    _compute(context, begin, 0, all_outputs=False)
    after_begin = context.logits(len(begin) - 1).copy()
    scores = []
    for ending in question.endings:
        tokens = model.tokenize(" " + ending, add_special=False, parse_special=False)
        context.truncate(0, len(begin))
        total = _log_probability(after_begin, int(tokens[0]))
        if len(tokens) > 1:
            _compute(context, tokens[:-1], len(begin), all_outputs=True)
            for place, token in enumerate(tokens[1:]):
                total += _log_probability(context.logits(place), int(token))
        scores.append(total / len(ending))
    return scores


def _compute(context: Context, tokens: Tokens, position: int, *, all_outputs: bool) -> None:
    count = len(tokens)
    context.tokens[:count] = tokens
    context.positions[:count] = np.arange(position, position + count)
    context.sequence_ids[:count] = 0
    context.outputs[:count] = 1 if all_outputs else 0
    context.outputs[count - 1] = 1
    context.decode(count)


def _log_probability(logits: np.ndarray[tuple[int], np.dtype[np.float32]], token: int) -> float:
    top = float(logits.max())
    total = float(np.exp(logits - top).sum(dtype=np.float64))
    return float(logits[token]) - top - math.log(total)
