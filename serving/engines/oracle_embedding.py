"""Embedding in the oracle engine: a vector that is known from the model's digest and the text."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

from serving.engines.base import EngineRefused
from serving.engines.oracle_parts import StopFilter, TokenChain, input_tokens
from serving.engines.oracle_sequence import OracleSequence
from serving.engines.oracle_settings import OracleSettings
from tidegate.routing.domain import (
    Cause,
    Failure,
    Finish,
    FinishReason,
    SequenceOutput,
    Usage,
    Work,
)
from tidegate.routing.embedding import pack_vector, unpack_texts

DIMENSIONS = 8


def oracle_vector(digest: str, text: str) -> tuple[float, ...]:
    """Of length 1; equal texts have equal vectors, others have others."""
    words = hashlib.sha256(f"{digest}\0{text}".encode()).digest()
    values = [int.from_bytes(words[4 * i : 4 * i + 4], "big") / 2**31 - 1.0 for i in range(DIMENSIONS)]
    length = math.sqrt(sum(value * value for value in values))
    return tuple(value / length for value in values)


@dataclass(slots=True, eq=False)
class OracleEmbedding(OracleSequence):
    """Gives one vector a step instead of a token."""

    texts: tuple[str, ...] = ()
    digest: str = ""

    @classmethod
    def of(cls, work: Work, settings: OracleSettings, now_s: float) -> OracleEmbedding:
        """Raises EngineRefused: UNKNOWN_VARIANT, INVALID_INPUT, CONTEXT_LENGTH."""
        digest = settings.model_digest
        if work.variant_digest != digest:
            raise EngineRefused(Failure(Cause.UNKNOWN_VARIANT, "this variant is not served here"))
        try:
            texts = unpack_texts(work.input)
        except ValueError:
            raise EngineRefused(Failure(Cause.INVALID_INPUT, "the input is no list of texts")) from None
        tokens = [input_tokens(text.encode()) for text in texts]
        for number, count in enumerate(tokens):
            if count > settings.context_tokens:
                detail = f"input {number} has {count} tokens, above the limit of {settings.context_tokens}"
                raise EngineRefused(Failure(Cause.CONTEXT_LENGTH, detail))
        return cls(
            work=work,
            prompt_tokens=sum(tokens),
            chain=TokenChain(digest, work.input),
            stops=StopFilter(()),
            limit=len(texts),
            natural_end=None,
            submitted_s=now_s,
            texts=texts,
            digest=digest,
        )

    def advance(self, now: Callable[[], float], batch_size: int) -> SequenceOutput:
        index = self.produced
        self.produced += 1
        return SequenceOutput(
            key=self.work.key,
            first_index=index,
            count=1,
            first_token=self._first_token(now(), batch_size) if index == 0 else None,
            finish=Finish(FinishReason.STOP, self._usage()) if self.produced == self.limit else None,
            vectors=pack_vector(oracle_vector(self.digest, self.texts[index])),
        )

    def _usage(self) -> Usage:
        return Usage(self.prompt_tokens)
