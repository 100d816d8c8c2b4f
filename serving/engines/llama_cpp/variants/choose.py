"""Slots, context, cache type and batch where the operator set none: what memory allows. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from serving.engines.llama_cpp.attention import Attention, uses_flash
from serving.engines.llama_cpp.variants.memory import AvailableMemory
from serving.engines.llama_cpp.variants.plan import Load, Shape, budget_of

# From the best to the least, each with the part of the available memory that it may take: a longer context
# only where it costs little, the others all but what should be left to everybody else. A quantized cache is
# late: it needs flash attention, which on a processor makes answers to long prompts several times slower.
_USUAL = Load(4, 2048, "f16", 256)
_LADDER = (
    (Load(4, 4096, "f16", 256), 0.125),
    (_USUAL, 0.8),
    (Load(2, 2048, "f16", 256), 0.8),
    (Load(1, 2048, "f16", 256), 0.8),
    (Load(1, 2048, "q8_0", 256), 0.8),
    (Load(1, 1024, "q8_0", 128), 0.8),
    (Load(1, 512, "q8_0", 128), 0.8),
)


@dataclass(frozen=True, slots=True)
class Wish:
    """What the operator set; 0 and "auto" are to be chosen."""

    slots: int = 0
    context_tokens: int = 0
    kv_type: str = "auto"
    n_batch: int = 0

    @property
    def is_open(self) -> bool:
        return self.kv_type == "auto" or 0 in (self.slots, self.context_tokens, self.n_batch)

    def over(self, load: Load) -> Load:
        """`load`, but for what was set."""
        return Load(
            slots=self.slots or load.slots,
            context_tokens=self.context_tokens or load.context_tokens,
            kv_type=load.kv_type if self.kv_type == "auto" else self.kv_type,
            n_batch=self.n_batch or load.n_batch,
        )


def choose(
    shape: Shape,
    wish: Wish,
    available: AvailableMemory | None,
    *,
    attention: Attention = "auto",
    with_daemon: bool = False,
) -> Load:
    """The first that fits; the least where none does, for the fit check to refuse with its numbers.

    The usual one where the system does not tell its memory.
    """
    load = wish.over(_USUAL).within(shape)
    if available is None:
        return load
    for rung, share in _LADDER:
        load = wish.over(rung)
        if wish.kv_type == "auto" and not shape.takes_q8_cache:
            load = replace(load, kv_type="f16")
        load = replace(load, flash=uses_flash(attention, load.kv_type, 0)).within(shape)
        if budget_of(shape, load, with_daemon=with_daemon).total <= share * available.bytes:
            break
    return load
