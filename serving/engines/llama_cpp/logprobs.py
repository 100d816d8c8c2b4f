"""Log probabilities of one step's token, from the model's logits before any sampling option."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serving.engines.llama_cpp.native import Model
from tidegate.routing.domain import TokenLogprob


def token_logprob(model: Model, logits: npt.NDArray[np.float32], token: int, top: int) -> TokenLogprob:
    """With the `top` likeliest tokens: log p = logit - log(sum(exp(logits)))."""
    shifted = logits - logits.max()
    weights = np.exp(shifted)
    total = float(weights.sum())
    logs = shifted - np.float32(np.log(total))
    # At least two, for the margin.
    count = min(max(top, 2), len(logits))
    best = np.argpartition(-logits, count - 1)[:count]
    best = best[np.argsort(-logits[best], kind="stable")]
    # The entropy is log(total) - E[shifted].
    entropy = float(np.log(total) - float(np.dot(weights, shifted)) / total)
    likeliest = tuple(TokenLogprob(int(i), model.piece(int(i)), float(logs[i])) for i in best[:top])
    first, second = (float(weights[i]) / total for i in best[:2])
    margin, piece = first - second, model.piece(token)
    return TokenLogprob(token, piece, float(logs[token]), likeliest, margin, max(0.0, entropy))
