"""LoRA adapters in the engine's child: loaded with the model, applied to the context for one group at a time.

An adapter changes the result of every layer, so all sequences of one step share it. Groups with different
adapters take turns, a few steps each: in a round every sequence gets as many tokens as any other.
"""

from __future__ import annotations

from collections.abc import Sequence

from serving.engines.llama_cpp.native import Context, Model
from serving.engines.llama_cpp.sequence import Running

# Changing the adapter makes llama.cpp plan its graph again: a few steps in a row spread that, and many would
# be felt between two tokens of the others.
TURN_STEPS = 4


class Adapters:
    """What can be applied, and what is. Raises NativeError for a file that does not fit the model."""

    def __init__(self, model: Model, context: Context, files: Sequence[tuple[str, str, float]]) -> None:
        self._context = context
        self._loaded = {name: (model.load_adapter(path, name), scale) for name, path, scale in files}
        self._applied = ""

    def apply(self, name: str) -> None:
        """From the next step on; "" applies none."""
        if name == self._applied:
            return
        adapter, scale = self._loaded[name] if name else (None, 0.0)
        self._context.set_adapter(adapter, scale)
        self._applied = name


class Turns:
    """Whose turn it is among the adapters of the running sequences. Pure."""

    def __init__(self, steps: int = TURN_STEPS) -> None:
        self._steps = steps
        self._name = ""
        self._left = 0

    def group(self, active: Sequence[Running]) -> list[Running]:
        """The sequences of the next step, in the order of `active`, of which there is one at least."""
        names = sorted({running.work.adapter for running in active})
        if self._left <= 0 or self._name not in names:
            self._name = next((name for name in names if name > self._name), names[0])
            self._left = self._steps
        self._left -= 1
        if len(names) == 1:
            return list(active)
        return [running for running in active if running.work.adapter == self._name]

    def end(self) -> None:
        """The group had nothing to compute: the next one has its turn."""
        self._left = 0
