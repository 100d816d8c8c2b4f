"""What the oracle engine plays."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from serving.engines.base import EngineInfo
from tidegate.routing.domain import ReplayClass, Speeds, Variant

BUILD = "oracle-1"


@dataclass(frozen=True, slots=True)
class OracleSettings:
    """One model, its pace and its limits.

    `digest` "" is derived from the model's name. `decode` is ((batch size, tokens/s per sequence), ...)
    ascending. `pacing` multiplies every duration; 0 runs as fast as it can. `natural_length` bounds the
    answer's own length in tokens (it then ends with STOP); None answers up to max_tokens.
    """

    model: str = "oracle"
    digest: str = ""
    aliases: tuple[str, ...] = ()
    quantization: str = "none"
    context_tokens: int = 1 << 21
    perplexity: float | None = None
    capabilities: frozenset[str] = frozenset({"token_ids", "embeddings"})
    slots: int = 4
    queue_limit: int = 16
    prefill_tokens_per_s: float = 2000.0
    decode: tuple[tuple[int, float], ...] = ((1, 50.0), (4, 30.0))
    prefill_chunk_tokens: int = 512
    cache_tokens: int = 1 << 16
    pacing: float = 1.0
    natural_length: tuple[int, int] | None = None
    load_s: float = 0.0
    restart_s: float = 1.0
    hardware_class: str = "oracle"

    @property
    def model_digest(self) -> str:
        return self.digest or hashlib.sha256(b"oracle\0" + self.model.encode()).hexdigest()

    @property
    def speeds(self) -> Speeds:
        """As configured, whatever the pacing."""
        return Speeds(self.prefill_tokens_per_s, self.decode)

    def info(self) -> EngineInfo:
        digest = self.model_digest
        variant = Variant(
            model=self.model,
            digest=digest,
            quantization=self.quantization,
            context_tokens=self.context_tokens,
            perplexity=self.perplexity,
            capabilities=self.capabilities,
            aliases=self.aliases,
        )
        return EngineInfo(
            variants=(variant,),
            slots=self.slots,
            queue_limit=self.queue_limit,
            build=BUILD,
            replay_class=ReplayClass.TOKENS,
            replay_digest=f"{BUILD}:{digest}",
            hardware_class=self.hardware_class,
            speeds=self.speeds,
        )
