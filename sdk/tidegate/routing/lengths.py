"""How long answers become, and how many tokens prompts are, per model: learned from usage.

An answer is taken to end with the same odds after each token, so that one cut off at max_tokens counts as
"at least this long" and not as its length: rate = answers that ended by themselves / tokens of all answers.
Short and long prompts are asked for different things, so the rate is one of the model and the prompt's class.
"""

from __future__ import annotations

import math

CLASS_LIMITS = (64, 256, 1024, 4096)
KEEP = 0.99
# A few answers must have ended by themselves before they are expected to end long before max_tokens.
_PRIOR_ENDED, _PRIOR_TOKENS = 0.05, 128.0
_RATIO_WEIGHT = 0.05
_MAX_RATIO = 4.0
_NOTHING = (None, 0, 0, 0.0, 0.0)


def prompt_class(prompt_tokens: int) -> int:
    """Which of the five classes of prompt length this is, 0 for the shortest."""
    for number, limit in enumerate(CLASS_LIMITS):
        if prompt_tokens <= limit:
            return number
    return len(CLASS_LIMITS)


class Lengths:
    """Of all models. `prompt_ratio` is how many tokens a prompt really is per token estimated."""

    def __init__(self) -> None:
        self.ended: dict[tuple[str, int], tuple[float, float]] = {}
        self.ratios: dict[str, float] = {}
        self._prompts: dict[str, int] = {}
        # The last question, then its answer: the candidates of one decision mostly ask the same.
        self.last: tuple[str | None, int, int, float, float] = _NOTHING

    def of(self, model: str, prompt_tokens: int, max_tokens: int) -> tuple[float, float]:
        """Tokens that a prompt of so many estimated ones has, and those of its answer."""
        prompt = prompt_tokens * self.prompt_ratio(model)
        answer = self.expect(model, prompt_tokens, max_tokens)
        self.last = (model, prompt_tokens, max_tokens, prompt, answer)
        return prompt, answer

    def changed(self) -> None:
        """To be called by who writes into `ended` or `ratios`."""
        self.last = _NOTHING

    def expect(self, model: str, prompt_tokens: int, max_tokens: int) -> float:
        """E[min(length, max_tokens)], at least 1."""
        ended, tokens = self.ended.get((model, prompt_class(prompt_tokens)), (0.0, 0.0))
        if not ended:
            return max(float(max_tokens), 1.0)
        rate = (ended + _PRIOR_ENDED) / (tokens + _PRIOR_TOKENS)
        return max((1.0 - math.exp(-rate * max_tokens)) / rate, 1.0)

    def answered(self, model: str, prompt_tokens: int, output_tokens: int, *, stopped: bool) -> None:
        """One answer of so many tokens, which ended by itself or was cut off there, by whatever."""
        key = (model, prompt_class(prompt_tokens))
        ended, tokens = self.ended.get(key, (0.0, 0.0))
        self.last = _NOTHING
        self.ended[key] = (KEEP * ended + (1.0 if stopped else 0.0), KEEP * tokens + output_tokens)

    def prompt_ratio(self, model: str) -> float:
        return self.ratios.get(model, 1.0)

    def prompted(self, model: str, estimated: int, actual: int) -> None:
        ratio = min(max(actual / max(estimated, 1), 1.0 / _MAX_RATIO), _MAX_RATIO)
        old, seen = self.ratios.get(model, 1.0), self._prompts.get(model, 0) + 1
        self._prompts[model] = seen
        self.last = _NOTHING
        self.ratios[model] = old + max(_RATIO_WEIGHT, 1.0 / (seen + 1)) * (ratio - old)
