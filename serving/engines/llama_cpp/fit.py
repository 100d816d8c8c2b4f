"""Whether a model may be loaded: its header is sound, and this device has the memory for it."""

from __future__ import annotations

from serving.engines.llama_cpp.gguf_check import GgufHeader, read_gguf
from serving.engines.llama_cpp.settings import LlamaCppSettings
from serving.engines.llama_cpp.variants.plan import Load, model_bytes, require_fit


def check_model(settings: LlamaCppSettings) -> GgufHeader:
    """The file's header. Blocks. Raises EngineUnavailable, with the numbers when memory is short.

    With layers on a GPU nobody here knows where the weights go: nothing is refused then.
    """
    contents = read_gguf(settings.model_path)
    if settings.fit_check and settings.n_gpu_layers == 0:
        load = Load(settings.slots, settings.context_tokens, settings.kv_type, settings.n_batch)
        require_fit(contents, model_bytes(settings.model_path), load)
    return contents.header
