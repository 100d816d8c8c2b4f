"""Whether a model may be loaded: its header is sound, and this device has the memory for it."""

from __future__ import annotations

import functools
from pathlib import Path

from serving.engines.llama_cpp.gguf_check import GgufContents, GgufHeader, read_gguf
from serving.engines.llama_cpp.settings import LlamaCppSettings
from serving.engines.llama_cpp.variants.choose import Wish, choose
from serving.engines.llama_cpp.variants.memory import available_memory
from serving.engines.llama_cpp.variants.plan import Budget, Load, Shape, budget_of, model_bytes, require_fit

# On top of what the plan expects: fragments, stacks, heaps per thread, and the plan's own error.
_MARGIN_SHARE = 0.5
_MARGIN_BYTES = 512 * 2**20


@functools.lru_cache(maxsize=1)
def _read(path: Path, _size: int, _changed_ns: int) -> GgufContents:
    return read_gguf(path)


def _contents(path: Path) -> GgufContents:
    """Read once while the file stays as it is. Raises EngineUnavailable."""
    try:
        about = path.stat()
    except OSError:
        return read_gguf(path)
    return _read(path, about.st_size, about.st_mtime_ns)


def check_model(settings: LlamaCppSettings) -> GgufHeader:
    """The file's header. Blocks. Raises EngineUnavailable, with the numbers when memory is short.

    With layers on a GPU nobody here knows where the weights go: nothing is refused then.
    """
    contents = _contents(settings.model_path)
    if settings.fit_check and settings.n_gpu_layers == 0:
        require_fit(contents, model_bytes(settings.model_path), _load(settings))
    return contents.header


def derive(settings: LlamaCppSettings) -> LlamaCppSettings:
    """With what was left open chosen from the memory that there is. Blocks. Raises EngineUnavailable."""
    wish = Wish(settings.slots, settings.context_tokens, settings.kv_type, settings.n_batch)
    shape = Shape.of(_contents(settings.model_path), model_bytes(settings.model_path))
    # With layers on a GPU nobody here knows what takes memory where.
    available = available_memory() if settings.n_gpu_layers == 0 else None
    chosen = choose(shape, wish, available, attention=settings.flash_attention)
    return settings.model_copy(
        update={
            "slots": chosen.slots,
            "context_tokens": chosen.context_tokens,
            "kv_type": chosen.kv_type,
            "n_batch": chosen.n_batch,
        }
    )


def memory_limit_bytes(settings: LlamaCppSettings) -> int:
    """What a child may write to, far above what it needs and far below what would starve the device.

    Weights count in full, because llama.cpp may repack them into memory of its own. 0 is no limit: as asked,
    or with a GPU, whose driver reserves what it never uses.
    Blocks. Raises EngineUnavailable.
    """
    if settings.memory_limit_mib:
        return max(0, settings.memory_limit_mib) * 2**20
    if settings.n_gpu_layers != 0:
        return 0
    shape = Shape.of(_contents(settings.model_path), model_bytes(settings.model_path))
    budget = budget_of(shape, _load(settings).within(shape), with_daemon=False)
    adapters = sum(adapter.path.stat().st_size for adapter in settings.adapters if adapter.path.exists())
    return limit_of(budget, adapters)


def limit_of(budget: Budget, further_bytes: int = 0) -> int:
    """Prefixes that are kept outside the slots take as much as the cache once more."""
    needed = budget.total + budget.slots * budget.cache_per_slot + further_bytes
    return int(needed * (1.0 + _MARGIN_SHARE)) + _MARGIN_BYTES


def _load(settings: LlamaCppSettings) -> Load:
    flash = settings.uses_flash
    return Load(settings.slots, settings.context_tokens, settings.kv_type, settings.step_tokens, flash)
