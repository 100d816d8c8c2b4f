"""Does a model fit this device? The memory that an engine will need, line by line, before it is loaded.

The weights and the cache follow from the file's header exactly; compute buffers and the processes themselves
are estimates from measurements with llama.cpp on x86-64. No native code and no numpy: the daemon imports it.
"""

from __future__ import annotations

import glob
import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp.attention import scores_bytes, step_tokens
from serving.engines.llama_cpp.gguf_check import GgufArray, GgufContents
from serving.engines.llama_cpp.variants.memory import AvailableMemory, available_memory

# Bytes per cached number: q8_0 keeps blocks of 32 numbers in 34 bytes each, of rows that such blocks fill.
_Q8_BLOCK = 32
KV_BYTES = {"f16": 2.0, "q8_0": 34 / _Q8_BLOCK}
# llama.cpp rounds each sequence's cache up to whole blocks.
_CACHE_BLOCK = 256
# Interpreter, numpy and llama.cpp's libraries in the engine's process; aiohttp and the rest in the daemon's.
_CHILD_BYTES = 48_000_000
_DAEMON_BYTES = 60_000_000
# A token's text, score, and its places in the vocabulary's tables.
_VOCABULARY_BYTES = 300
_MIN_CONTEXT = 256
_SPLIT = re.compile(r"(.+)-00001-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a model decides its memory. Widths are per token, over all layers for the cache."""

    weights_bytes: int
    kv_numbers_per_token: int
    embedding: int
    feed_forward: int
    heads: int
    vocabulary: int
    context_train: int
    takes_q8_cache: bool = True

    @classmethod
    def of(cls, contents: GgufContents, file_bytes: int) -> Shape:
        layers = contents.number("block_count")
        embedding = contents.number("embedding_length")
        heads = max(1, contents.number("attention.head_count", 1))
        key = contents.number("attention.key_length", embedding // heads)
        value = contents.number("attention.value_length", embedding // heads)
        tokens = contents.values.get("tokenizer.ggml.tokens")
        return cls(
            weights_bytes=file_bytes,
            kv_numbers_per_token=_kv_heads(contents, layers, heads) * (key + value),
            embedding=embedding,
            feed_forward=contents.number("feed_forward_length", 4 * embedding),
            heads=heads,
            vocabulary=tokens.length if isinstance(tokens, GgufArray) else 0,
            context_train=contents.header.context_tokens,
            takes_q8_cache=key % _Q8_BLOCK == 0 and value % _Q8_BLOCK == 0,
        )


def model_bytes(path: Path) -> int:
    """The size of a model's file; of all parts where it is the first of several."""
    found = _SPLIT.fullmatch(path.name)
    parts = path.parent.glob(f"{glob.escape(found[1])}-*-of-{found[2]}.gguf") if found else [path]
    return sum(part.stat().st_size for part in parts)


def _kv_heads(contents: GgufContents, layers: int, heads: int) -> int:
    """Heads with keys and values, summed over the layers: one number for all, or one a layer."""
    if contents.number("attention.head_count") == 0:
        # A recurrent model: its state does not grow with the context.
        return 0
    value = contents.values.get(f"{contents.header.architecture}.attention.head_count_kv", heads)
    if isinstance(value, GgufArray) and value.items is not None:
        return sum(item for item in value.items if isinstance(item, int))
    return layers * (value if isinstance(value, int) else heads)


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the model. `context_tokens` is per slot."""

    slots: int
    context_tokens: int
    kv_type: str = "f16"
    n_batch: int = 512
    flash: bool = False

    def within(self, shape: Shape) -> Load:
        """With no more context than the model was trained for, as the engine does it."""
        longest = shape.context_train or self.context_tokens
        return replace(self, context_tokens=min(self.context_tokens, longest))


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes. `daemon` is 0 where the daemon runs already and its memory is in use."""

    weights: int
    cache_per_slot: int
    slots: int
    compute: int
    vocabulary: int
    child: int
    daemon: int

    @property
    def total(self) -> int:
        return self.fixed + self.slots * self.cache_per_slot

    @property
    def fixed(self) -> int:
        """All but the cache."""
        return self.weights + self.compute + self.vocabulary + self.child + self.daemon


@dataclass(frozen=True, slots=True)
class Plan:
    """`most_context` and `most_slots` are the largest that would fit with the rest of `load`; 0 is none."""

    load: Load
    budget: Budget
    available: AvailableMemory
    most_context: int
    most_slots: int
    step_tokens: int

    @property
    def fits(self) -> bool:
        return self.budget.total <= self.available.bytes


def budget_of(shape: Shape, load: Load, *, with_daemon: bool = True) -> Budget:
    """What `load` needs."""
    blocks = -(-load.context_tokens // _CACHE_BLOCK)
    per_slot = int(blocks * _CACHE_BLOCK * shape.kv_numbers_per_token * KV_BYTES[load.kv_type])
    return Budget(
        weights=shape.weights_bytes,
        cache_per_slot=per_slot,
        slots=load.slots,
        compute=_compute_bytes(shape, load),
        vocabulary=shape.vocabulary * _VOCABULARY_BYTES,
        child=_CHILD_BYTES,
        daemon=_DAEMON_BYTES if with_daemon else 0,
    )


def _compute_bytes(shape: Shape, load: Load) -> int:
    """Activations of one step of tokens in 32 bits, its scores, and the logits of the sequences in it."""
    step = _step(shape, load)
    activations = step * (4 * shape.embedding + 3 * shape.feed_forward)
    logits = 2 * (load.slots + 1) * shape.vocabulary
    scores = 0 if load.flash else scores_bytes(step, shape.heads, load.context_tokens)
    return 4 * (activations + logits) + scores


def _step(shape: Shape, load: Load) -> int:
    return step_tokens(load.n_batch, shape.heads, load.context_tokens, flash=load.flash)


def plan(
    shape: Shape, load: Load, available: AvailableMemory, *, with_daemon: bool = True, max_slots: int = 64
) -> Plan:
    """Pure: the budget against the memory there is."""
    load = load.within(shape)

    def fits(changed: Load) -> bool:
        return budget_of(shape, changed, with_daemon=with_daemon).total <= available.bytes

    longest = shape.context_train or load.context_tokens
    contexts = range(_MIN_CONTEXT, longest + 1, _CACHE_BLOCK)
    most_context = _last(contexts, lambda tokens: fits(replace(load, context_tokens=tokens)))
    most_slots = _last(range(1, max_slots + 1), lambda slots: fits(replace(load, slots=slots)))
    budget = budget_of(shape, load, with_daemon=with_daemon)
    return Plan(load, budget, available, most_context, most_slots, _step(shape, load))


def _last(sizes: range, fits: Callable[[int], bool]) -> int:
    """The largest size that fits, by halving; 0 when none does."""
    return sizes[found - 1] if (found := bisect_left(sizes, True, key=lambda size: not fits(size))) else 0


def lines(found: Plan) -> list[str]:
    """The budget as a table, and the verdict."""
    b, load = found.budget, found.load
    rows = [
        ("weights", b.weights, "the file's size"),
        ("cache", b.slots * b.cache_per_slot, f"{b.slots} slots x {_mb(b.cache_per_slot)} ({load.kv_type})"),
        ("compute buffers", b.compute, f"estimate, steps of {found.step_tokens} tokens"),
        ("vocabulary", b.vocabulary, "estimate"),
        ("engine process", b.child, "estimate, without the model"),
        ("daemon", b.daemon, "estimate"),
        ("total", b.total, ""),
        ("available", found.available.bytes, found.available.limited_by),
    ]
    table = [f"{name:<16} {_mb(size):>10}  {note}".rstrip() for name, size, note in rows if size]
    return [*table, verdict(found)]


def verdict(found: Plan) -> str:
    """One sentence with the numbers."""
    load = found.load
    asked = f"{load.slots} slots of {load.context_tokens} tokens"
    need = f"{asked} need {_mb(found.budget.total)} of {_mb(found.available.bytes)}"
    if found.fits:
        return f"fits: {need}; up to {found.most_context} tokens a slot, or {found.most_slots} slots"
    ways = []
    if found.most_context:
        ways.append(f"{load.slots} slots of {found.most_context} tokens")
    if found.most_slots:
        ways.append(f"{found.most_slots} slots of {load.context_tokens} tokens")
    if not ways:
        return f"does not fit: {need}; no setting does, a smaller variant may (`tidegate-edge quantize`)"
    return f"does not fit: {need}; what would: {', or '.join(ways)}"


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e7 else f"{size / 1e6:.0f} MB"


def require_fit(contents: GgufContents, file_bytes: int, load: Load) -> None:
    """For the engine, before it loads. Raises EngineUnavailable with the numbers when the model cannot fit.

    Where the system tells nothing about its memory, nothing is refused.
    """
    available = available_memory()
    if available is None:
        return
    found = plan(Shape.of(contents, file_bytes), load, available, with_daemon=False)
    if not found.fits:
        raise EngineUnavailable(
            f"the model {verdict(found)} (memory: {available.limited_by}; to load it all the same, set "
            "engine.llama_cpp.fit_check = false)"
        )
