"""The file that a server will be given: checked as for the engine in this program, and described."""

from __future__ import annotations

from serving.engines.llama_cpp.catalog import file_digest, read_entry
from serving.engines.llama_cpp.gguf_check import read_gguf
from serving.engines.llama_cpp.variants.plan import Load, model_bytes, require_fit
from serving.engines.llama_server.settings import LlamaServerSettings
from tidegate.routing.domain import Variant
from tidegate.routing.domain.work import JSON_SCHEMA, LOGIT_BIAS, MIROSTAT, OR_TEXT

_OWN = (JSON_SCHEMA, OR_TEXT, LOGIT_BIAS, MIROSTAT)


def describe_file(settings: LlamaServerSettings) -> Variant:
    """Blocks. Raises EngineUnavailable, with the numbers when memory is short."""
    path = settings.model_path
    contents = read_gguf(path)
    if settings.fit_check and settings.n_gpu_layers == 0:
        load = Load(settings.slots, settings.context_tokens, settings.kv_type, flash=True)
        require_fit(contents, model_bytes(path), load)
    entry = read_entry(path)
    return Variant(
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
