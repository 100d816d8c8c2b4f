"""Log probabilities as OpenAI's clients read them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tidegate.routing.domain import TokenLogprob

# JSON has no infinity, and clients expect a number.
_LEAST = -9999.0


def chat_logprobs(odds: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`choices[].logprobs` of chat completions, with each token's margin and entropy beside."""
    content = [
        _entry(one)
        | {"top_logprobs": [_entry(each) for each in one.top], "margin": one.margin, "entropy": one.entropy}
        for one in odds
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(odds: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """The older form. `offset` is where the first token's text begins in the answer."""
    texts = [_text(one) for one in odds]
    offsets = [offset + sum(map(len, texts[:i])) for i in range(len(texts))]
    return {
        "tokens": texts,
        "token_logprobs": [_finite(one.logprob) for one in odds],
        "top_logprobs": [{_text(each): _finite(each.logprob) for each in one.top} for one in odds],
        "text_offset": offsets,
    }


def _entry(one: TokenLogprob) -> dict[str, Any]:
    return {"token": _text(one), "logprob": _finite(one.logprob), "bytes": list(one.text)}


def _text(one: TokenLogprob) -> str:
    return one.text.decode("utf-8", "replace")


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
