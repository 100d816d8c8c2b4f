"""What an operator sets about a llama.cpp engine, and the part of it that its child process gets."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from serving.engines.llama_cpp.attention import Attention, uses_flash
from serving.engines.llama_cpp.protocol import ChildConfig

# A node announces each as a capability, and gateways read no more than 64 of these.
MAX_ADAPTERS = 32
# Of load_timeout_s: a child that is not ready by then stops pinning prompts and serves.
PIN_SHARE = 0.5
# The first measurement computes as many at once.
_LEAST_STEP = 128
_LEAST = {"context_tokens": 256, "n_batch": 32}


class DefaultSampling(BaseModel):
    """Sampling where a request says nothing. The values are llama.cpp's own defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(default=0.8, ge=0.0, description="0 is greedy.")
    top_k: int = Field(default=40, ge=0, description="Keep the k likeliest tokens; 0 keeps all.")
    top_p: float = Field(
        default=0.95, gt=0.0, le=1.0, description="Keep the likeliest tokens up to this mass."
    )
    min_p: float = Field(
        default=0.05, ge=0.0, le=1.0, description="Drop tokens below this share of the likeliest."
    )


class Adapter(BaseModel):
    """A LoRA adapter that requests may name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="The name that requests use.")
    path: Path = Field(description="The GGUF file.")
    scale: float = Field(default=1.0, ge=-10.0, le=10.0, description="How strongly it is applied.")


class PinnedPrompt(BaseModel):
    """A system prompt that is computed at start and never given up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = Field(min_length=1, max_length=65_536, description="The system prompt.")
    tenants: tuple[str, ...] = Field(
        min_length=1, max_length=16, description="Whose conversations it begins."
    )
    adapter: str = Field(default="", description="The LoRA adapter that they use.")


class LlamaCppSettings(BaseModel):
    """One GGUF model served by llama.cpp."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_path: Path = Field(description="The GGUF file.")
    model: str = Field(min_length=1, description="The name that users ask for.")
    aliases: tuple[str, ...] = Field(default=(), description="Further names of the model.")
    n_gpu_layers: int = Field(default=0, ge=-1, description="Layers offloaded to a GPU; -1 offloads all.")
    threads: int = Field(
        default=1,
        ge=0,
        description="Threads that compute, at most; 0 takes what was measured here, and one before that. As "
        "many as cores is fastest on an otherwise idle machine.",
    )
    adapt_threads: bool = Field(
        default=True,
        description="Compute with fewer threads while that is faster: when others take cores, or heat does.",
    )
    bench_folder: Path | None = Field(
        default=None, description="Where measured speeds of this device are kept; unset measures none."
    )
    tune_after_s: float = Field(
        default=0.0, ge=0.0, description="Idle time before the device is measured once; 0 never."
    )
    slots: int = Field(default=4, ge=0, le=64, description="Sequences that run at once; 0 derives it.")
    context_tokens: int = Field(
        default=2048, ge=0, description="Prompt and answer together, per sequence; 0 derives it from memory."
    )
    queue_limit: int = Field(default=16, ge=0, description="Sequences that may wait for a slot.")
    n_batch: int = Field(default=512, ge=0, description="Most tokens that one step computes; 0 derives it.")
    prefill_chunk: int = Field(
        default=256,
        ge=16,
        description="Most prompt tokens that one step computes when no sequence is answering.",
    )
    step_guard_ms: float = Field(
        default=200.0,
        gt=0.0,
        description="How far apart prompt tokens may move two tokens of a running answer; a step of prompts "
        "may always take two passes over the weights, or 64 tokens of prompts that came with the answers.",
    )
    max_tpot_ms: float = Field(
        default=0.0,
        ge=0.0,
        description="Fewer sequences run at once while a token of each takes longer than this; 0 never.",
    )
    kv_type: Literal["auto", "f16", "q8_0"] = Field(
        default="f16",
        description="q8_0 halves the memory of the cache and costs about 15 % of the speed; auto takes it "
        "where memory is short.",
    )
    flash_attention: Attention = Field(
        default="auto", description="auto: with a GPU or a quantized cache, else it is slower."
    )
    chat_template: str = Field(
        default="", description="Jinja template instead of the one inside the GGUF file."
    )
    sampling: DefaultSampling = Field(default=DefaultSampling(), description="Defaults of requests.")
    adapters: tuple[Adapter, ...] = Field(
        default=(), max_length=MAX_ADAPTERS, description="LoRA adapters that requests may name."
    )
    pinned_prompts: tuple[PinnedPrompt, ...] = Field(
        default=(), max_length=16, description="System prompts that are held for good."
    )
    prefix_file: Path | None = Field(
        default=None, description="File that keeps prefixes of public data from one life to the next."
    )
    prefix_file_mib: int = Field(default=256, ge=1, description="Its largest size.")
    embeddings: Literal["off", "mean", "cls", "last"] = Field(
        default="mean", description="How the tokens of an embedded text become one vector; off refuses."
    )
    embedding_tokens: int = Field(
        default=512, ge=16, le=32768, description="Longest text that is embedded, in tokens."
    )
    load_timeout_s: float = Field(default=120.0, gt=0.0, description="Longest time to load the model.")
    hang_timeout_s: float = Field(
        default=20.0, gt=0.0, description="Without a step for this long, it is restarted."
    )
    idle_unload_s: float = Field(
        default=0.0, ge=0.0, description="Without work for this long, its memory is given back; 0 never."
    )
    restart_backoff_max_s: float = Field(default=30.0, gt=0.0, description="Longest pause between restarts.")
    quarantine_after: int = Field(
        default=5,
        ge=0,
        description="Ends in a row without one finished answer after which the model rests; 0 never.",
    )
    quarantine_s: float = Field(default=600.0, gt=0.0, description="How long it rests before the next try.")
    memory_limit_mib: int = Field(
        default=0,
        ge=-1,
        description="Memory that the engine's process may write to; 0 derives it from the model, -1 is none.",
    )
    bounded_spin: bool = Field(
        default=False, description="Let waiting threads sleep early: for several threads on shared cores."
    )
    fit_check: bool = Field(
        default=True, description="Refuse to load a model that memory is too short for, with the numbers."
    )
    grammars: bool = Field(
        default=False,
        description="Take grammars that requests bring; one that repeats what may be empty hangs the engine.",
    )
    requantize_slow: bool = Field(
        default=False,
        description="Serve a Q4_0 copy, made once, of a file whose type has no fast kernel here.",
    )
    debug: bool = Field(default=False, description="Let llama.cpp write its log to standard error.")

    @field_validator("context_tokens", "n_batch")
    @classmethod
    def _derived_or_enough(cls, value: int, info: ValidationInfo) -> int:
        least = _LEAST[info.field_name or ""]
        if 0 < value < least:
            raise ValueError(f"must be 0 or at least {least}")
        return value

    @field_validator("adapters")
    @classmethod
    def _names_differ(cls, adapters: tuple[Adapter, ...]) -> tuple[Adapter, ...]:
        if len({adapter.name for adapter in adapters}) < len(adapters):
            raise ValueError("two adapters have the same name")
        return adapters

    @property
    def uses_flash(self) -> bool:
        return uses_flash(self.flash_attention, self.kv_type, self.n_gpu_layers)

    @property
    def leaves_open(self) -> bool:
        """Whether something is to be derived from memory before a child can start."""
        return self.kv_type == "auto" or 0 in (self.slots, self.context_tokens, self.n_batch)

    @property
    def step_tokens(self) -> int:
        """The most that a step ever computes: buffers are as large."""
        return max(min(self.n_batch, self.prefill_chunk + self.slots), _LEAST_STEP, self.slots + 16)

    @property
    def kept_in(self) -> Path | None:
        """Where speeds of this device are kept. With a GPU they are not told apart by what it does."""
        return self.bench_folder if self.n_gpu_layers == 0 else None

    def child_config(self) -> ChildConfig:
        """The part of the settings that the child process needs."""
        return ChildConfig(
            model_path=str(self.model_path),
            n_gpu_layers=self.n_gpu_layers,
            threads=self.threads,
            slots=self.slots,
            context_tokens=self.context_tokens,
            n_batch=self.step_tokens,
            prefill_chunk=self.prefill_chunk,
            step_guard_ms=self.step_guard_ms,
            max_tpot_ms=self.max_tpot_ms,
            kv_type=self.kv_type,
            flash=self.uses_flash,
            chat_template=self.chat_template,
            temperature=self.sampling.temperature,
            top_k=self.sampling.top_k,
            top_p=self.sampling.top_p,
            min_p=self.sampling.min_p,
            debug=self.debug,
            adapters=[(adapter.name, str(adapter.path), adapter.scale) for adapter in self.adapters],
            pinned=[(each.text, each.tenants, each.adapter) for each in self.pinned_prompts],
            pin_within_s=PIN_SHARE * self.load_timeout_s,
            prefix_file=str(self.prefix_file or ""),
            prefix_file_bytes=self.prefix_file_mib * 2**20,
            pooling=self.embeddings,
            embedding_tokens=self.embedding_tokens,
            # What layers on a GPU take says nothing about cores.
            adapt_threads=self.adapt_threads and self.n_gpu_layers == 0,
            tune_after_s=self.tune_after_s if self.kept_in is not None else 0.0,
        )
