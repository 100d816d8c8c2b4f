"""The file that a server will be given: checked as for the engine in this program, described, and weighed."""

from __future__ import annotations

from dataclasses import dataclass

from serving.engines.llama_cpp.catalog import file_digest, read_entry
from serving.engines.llama_cpp.fit import limit_of
from serving.engines.llama_cpp.gguf_check import GgufContents, read_gguf
from serving.engines.llama_cpp.variants.plan import Load, Shape, budget_of, model_bytes, require_fit
from serving.engines.llama_server.settings import LlamaServerSettings
from tidegate.routing.domain import Variant
from tidegate.routing.domain.work import JSON_SCHEMA, LOGIT_BIAS, MIROSTAT, OR_TEXT

_OWN = (JSON_SCHEMA, OR_TEXT, LOGIT_BIAS, MIROSTAT)


@dataclass(frozen=True, slots=True)
class Described:
    """`kept_mib`: for prompts that have lost their slot, as much as the slots have. A limit of 0 is none."""

    variant: Variant
    kept_mib: int
    memory_limit_bytes: int


def describe_file(settings: LlamaServerSettings) -> Described:
    """Blocks. Raises EngineUnavailable, with the numbers when memory is short."""
    path = settings.model_path
    contents = read_gguf(path)
    load = Load(settings.slots, settings.context_tokens, settings.kv_type, flash=True)
    if settings.fit_check and settings.n_gpu_layers == 0:
        require_fit(contents, model_bytes(path), load)
    entry = read_entry(path)
    variant = Variant(
        model=settings.model,
        digest=entry.digest if entry else file_digest(path),
        quantization=entry.quantization if entry else contents.header.quantization,
        context_tokens=settings.context_tokens,
        perplexity=entry.perplexity if entry else None,
        # Another program in its place may ignore what it does not know.
        capabilities=frozenset({"text", "chat", *(() if settings.command else _OWN)}),
        aliases=settings.aliases,
        accuracy=entry.figures.accuracy if entry and entry.figures else None,
    )
    return Described(variant, *_memory(settings, contents, load))


def _memory(settings: LlamaServerSettings, contents: GgufContents, load: Load) -> tuple[int, int]:
    """MiB for former prompts, and what the process may write to in bytes.

    Unless the operator sets one, neither another server has a limit nor a GPU's driver, which reserves what
    it never uses. Whether attention is flash is the server's choice: what it needs without counts.
    """
    shape = Shape.of(contents, model_bytes(settings.model_path))
    budget = budget_of(shape, Load(load.slots, load.context_tokens, load.kv_type), with_daemon=False)
    kept_mib = 1 + budget.slots * budget.cache_per_slot // 2**20
    if settings.memory_limit_mib:
        return kept_mib, max(0, settings.memory_limit_mib) * 2**20
    return kept_mib, 0 if settings.helpers else limit_of(budget)
