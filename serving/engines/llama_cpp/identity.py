"""What an engine is, for those who pool or continue the work of several."""

from __future__ import annotations

import contextlib
import hashlib
import platform
from collections.abc import Sequence
from pathlib import Path

from serving.engines.base import EngineInfo, EngineUnavailable
from serving.engines.llama_cpp.catalog import CatalogEntry, file_digest
from serving.engines.llama_cpp.gguf_check import GgufHeader, read_gguf
from serving.engines.llama_cpp.protocol import Frame
from serving.engines.llama_cpp.settings import Adapter, LlamaCppSettings
from tidegate.routing.domain import ReplayClass, Speeds, Variant, adapter_capability
from tidegate.routing.domain.work import (
    EMBEDDINGS,
    GRAMMAR,
    JSON_SCHEMA,
    LOGIT_BIAS,
    LOGPROBS,
    MIROSTAT,
    OR_TEXT,
)

# What a gateway takes of a label.
_MAX_CLASS_CHARS = 256


def describe(
    settings: LlamaCppSettings,
    header: GgufHeader,
    entry: CatalogEntry | None,
    digest: str,
    ready: Frame,
    speeds: Speeds,
    adapters: Sequence[str] = (),
) -> EngineInfo:
    """From the file's header, its catalog entry if it has one, and what the child said when it was ready.

    `adapters` are the identities of the adapters (see adapter_identities).
    """
    variant = Variant(
        model=settings.model,
        digest=digest,
        quantization=entry.quantization if entry else header.quantization,
        context_tokens=ready["context_tokens"],
        perplexity=entry.perplexity if entry else None,
        capabilities=frozenset(
            {
                *("text", "token_ids", JSON_SCHEMA, OR_TEXT, LOGPROBS, LOGIT_BIAS, MIROSTAT),
                *([GRAMMAR] if settings.grammars else []),
                *(["chat"] if ready["template"] else []),
                *([EMBEDDINGS] if settings.embeddings != "off" else []),
                *(adapter_capability(adapter.name) for adapter in settings.adapters),
            }
        ),
        aliases=settings.aliases,
        accuracy=entry.figures.accuracy if entry and entry.figures else None,
    )
    return EngineInfo(
        variants=(variant,),
        slots=settings.slots,
        queue_limit=settings.queue_limit,
        build=ready["build"],
        replay_class=ReplayClass.TOKENS,
        replay_digest=replay_digest(digest, ready["build"], settings.kv_type, ready["template"], adapters),
        hardware_class=hardware_class(ready["threads"], ready.get("gpus", ())),
        speeds=speeds,
    )


def replay_digest(digest: str, build: str, kv_type: str, template: str, adapters: Sequence[str] = ()) -> str:
    """Equal digests: one engine's tokens can be replayed into the other, with any adapter."""
    parts = (digest, build, kv_type, template, *sorted(adapters))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def adapter_identities(adapters: Sequence[Adapter]) -> list[str]:
    """Name, file and scale of each. Blocks. Raises EngineUnavailable for a file that is no adapter."""
    found = []
    for adapter in adapters:
        check_adapter(adapter.name, adapter.path)
        found.append(f"{adapter.name} {file_digest(adapter.path)} {adapter.scale:g}")
    return found


def check_adapter(name: str, path: Path) -> None:
    """Raises EngineUnavailable for a file that is missing or no adapter."""
    try:
        values = read_gguf(path).values
    except EngineUnavailable as error:
        raise EngineUnavailable(f"adapter {name}: {str(error).replace('model file', 'file', 1)}") from None
    if values.get("general.type") != "adapter" or values.get("adapter.type") != "lora":
        raise EngineUnavailable(f"adapter {name}: {path} is no LoRA adapter (its general.type is another)")


def hardware_class(threads: int, gpus: Sequence[str] = ()) -> str:
    """Processor, thread count and GPUs: nodes of one class learn from each other's speeds."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name)
    return "+".join((f"{name}/{threads}t", *(" ".join(str(gpu).split()) for gpu in gpus)))[:_MAX_CLASS_CHARS]
