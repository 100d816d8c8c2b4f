"""Work given to a node and what comes back, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from tidegate.routing.domain.chat import FinishReason, OutputFormat, Sampling, TokenLogprob, Unit, Usage
from tidegate.routing.domain.node import adapter_capability

JSON_SCHEMA, OR_TEXT, GRAMMAR = "json_schema", "json_schema_or_text", "grammar"
# Work that is nobody's: gateways ask idle nodes for a few tokens, to know their speed.
PROBE_PRIORITY = -100
LOGPROBS, LOGIT_BIAS, EMBEDDINGS = "logprobs", "logit_bias", "embeddings"
MIROSTAT = "mirostat"
# The data class whose traces may be written to disk.
PUBLIC = "public"


@dataclass(frozen=True, slots=True)
class AttemptKey:
    """One try of one request."""

    request_id: str
    attempt_no: int


class Cause(StrEnum):
    """Why an attempt failed. The first group is the node's word, the second the gateway's own."""

    ENGINE_CRASHED = "engine_crashed"
    ENGINE_HUNG = "engine_hung"
    INVALID_INPUT = "invalid_input"
    UPSTREAM = "upstream"
    OVERLOADED = "overloaded"
    DRAINING = "draining"
    FENCED = "fenced"
    UNKNOWN_VARIANT = "unknown_variant"
    DEADLINE = "deadline"
    INTERNAL = "internal"
    CONTEXT_LENGTH = "context_length"

    NODE_LOST = "node_lost"
    STALLED = "stalled"


class InputKind(StrEnum):
    CHAT = "chat"
    TEXT = "text"
    EMBED = "embed"


@dataclass(frozen=True, slots=True)
class Work:
    """One attempt as a node receives it. Durations are milliseconds left when it was sent.

    `input` holds canonical message bytes for CHAT (see tidegate.routing.prefix), UTF-8 text for TEXT, or
    texts for EMBED (see tidegate.routing.embedding), whose outputs count inputs.
    `data_class` is the label of its data: nothing of it but what is PUBLIC may outlive the engine's process.
    `credits` is how many chunks the node may send before it is granted more. `adapter` names the LoRA adapter
    to compute with, "" none.
    """

    key: AttemptKey
    tenant: str
    variant_digest: str
    input_kind: InputKind
    input: bytes
    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...] = ()
    prefix_hashes: tuple[bytes, ...] = ()
    remaining_ms: float | None = None
    ttft_remaining_ms: float | None = None
    priority: int = 0
    credits: int = 64
    start_index: int = 0
    replay_token_ids: tuple[int, ...] = ()
    detach_grace_ms: float = 0.0
    work_seq: int = 0
    adapter: str = ""
    most_ahead: int | None = None
    format: OutputFormat = OutputFormat()
    top_logprobs: int | None = None
    data_class: str = ""

    @property
    def embeds(self) -> bool:
        return self.input_kind is InputKind.EMBED


class Asking(Protocol):
    """What requests and works have in common of what not every variant can do."""

    @property
    def sampling(self) -> Sampling: ...

    @property
    def adapter(self) -> str: ...

    @property
    def format(self) -> OutputFormat: ...

    @property
    def top_logprobs(self) -> int | None: ...

    @property
    def embeds(self) -> bool: ...


def needed_capabilities(asking: Asking) -> frozenset[str]:
    """The capabilities without which a variant would answer something else than what is asked."""
    needs = {
        JSON_SCHEMA: asking.format.json_schema,
        OR_TEXT: asking.format.or_text,
        GRAMMAR: asking.format.grammar,
        LOGPROBS: asking.top_logprobs is not None,
        LOGIT_BIAS: asking.sampling.logit_bias,
        MIROSTAT: asking.sampling.mirostat,
        EMBEDDINGS: asking.embeds,
        adapter_capability(asking.adapter): asking.adapter,
    }
    return frozenset(name for name, needed in needs.items() if needed)


@dataclass(frozen=True, slots=True)
class FirstToken:
    """Stamped by the engine when a sequence yields its first token. `queue_ms` is without `wake_ms`, the wait
    for the model to be loaded."""

    queue_ms: float
    prefill_ms: float
    cached_tokens: int
    batch_size: int
    prompt_tokens: int
    wake_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a sequence ended without its answer. `detail` is for people and carries no prompt text."""

    cause: Cause
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Finish:
    """How a sequence ended: `result` is a reason, or a failure."""

    result: FinishReason | Failure
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class SequenceOutput:
    """What one engine step gave one sequence: tokens [first_index, first_index + count).

    `vectors` are those of EMBED, packed.
    `logprobs` has one entry for each of them, or none at all.
    """

    key: AttemptKey
    first_index: int
    count: int = 0
    token_ids: tuple[int, ...] = ()
    text: str = ""
    unit: Unit = Unit.TOKEN
    first_token: FirstToken | None = None
    finish: Finish | None = None
    vectors: bytes = b""
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class StepBatch:
    """All that one engine step gave, sequence by sequence."""

    outputs: tuple[SequenceOutput, ...]


@dataclass(frozen=True, slots=True)
class CacheDelta:
    """Prefix block names the engine now holds or dropped. `full` replaces all that was known."""

    held: tuple[bytes, ...] = ()
    evicted: tuple[bytes, ...] = ()
    digest: int = 0
    full: bool = False
