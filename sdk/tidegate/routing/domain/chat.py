"""What a request says and what an answer is made of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `content` is plain text: special tokens in it are not control tokens."""

    role: Role
    content: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; None takes the node's default.

    `temperature` 0 is greedy. `mirostat` 1 or 2 aims at `mirostat_tau` bits of surprise a token instead of
    cutting by `top_k`, `top_p` and `min_p`. `seed` makes sampling repeatable as far as the engine is
    deterministic.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repeat_penalty: float | None = None
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """What an answer must look like: a JSON schema (JSON text) or a GBNF grammar; both empty for plain text.

    With `or_text` text that does not begin with "{" will do instead of what the schema describes.
    """

    json_schema: str = ""
    grammar: str = ""
    or_text: bool = False

    def __bool__(self) -> bool:
        return bool(self.json_schema or self.grammar)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely a token was, from the model's logits before any sampling option.

    `logprob` is a natural logarithm. `top` holds the likeliest tokens, best first (their own `top` is empty);
    `margin` is the distance of the two best probabilities, `entropy` in nats.
    """

    token_id: int
    text: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()
    margin: float = 0.0
    entropy: float = 0.0


# Where neither request nor operator says one. Lower shares plan with the median: half of the tight ones miss.
TARGET_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Budget:
    """Soft latency limits in milliseconds; None does not limit.

    `ttft_ms`: arrival to first token. `tpot_ms`: mean time per token after the first.
    `total_ms`: arrival to last token. `target_share`: share of requests that must meet them, in (0, 1).
    """

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    total_ms: float | None = None
    target_share: float | None = None

    @property
    def limits_anything(self) -> bool:
        return not (self.ttft_ms is None and self.tpot_ms is None and self.total_ms is None)


class Unit(StrEnum):
    """What an index counts."""

    TOKEN = "token"
    DELTA = "delta"


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds. `queue_ms`, `prefill_ms` and `batch_size` are the node's own stamps."""

    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    ttft_ms: float = 0.0
    tpot_ms: float = 0.0
    total_ms: float = 0.0
    batch_size: int = 0
