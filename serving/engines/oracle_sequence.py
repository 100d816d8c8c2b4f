"""One sequence inside the oracle engine: from its work to its last token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from serving.engines.base import EngineRefused
from serving.engines.oracle_parts import StopFilter, TokenChain, input_tokens, oracle_length, token_text
from serving.engines.oracle_settings import OracleSettings
from tidegate.routing.domain import (
    Cause,
    Failure,
    Finish,
    FinishReason,
    FirstToken,
    InputKind,
    SequenceOutput,
    Usage,
    Work,
)
from tidegate.routing.prefix import parse_canonical


@dataclass(slots=True, eq=False)
class OracleSequence:
    """Times are seconds on the engine's clock. `limit` is how many tokens it may produce."""

    work: Work
    prompt_tokens: int
    chain: TokenChain
    stops: StopFilter
    limit: int
    natural_end: int | None
    submitted_s: float
    started_s: float = 0.0
    prefill_left: int = 0
    cached_tokens: int = 0
    produced: int = 0
    cancelled: bool = False

    @classmethod
    def of(cls, work: Work, settings: OracleSettings, now_s: float) -> OracleSequence:
        """Raises EngineRefused: UNKNOWN_VARIANT, INVALID_INPUT, CONTEXT_LENGTH."""
        digest = settings.model_digest
        if work.variant_digest != digest:
            raise EngineRefused(Failure(Cause.UNKNOWN_VARIANT, "this variant is not served here"))
        prompt_tokens = input_tokens(work.input)
        problem = _problem(work)
        if problem:
            raise EngineRefused(Failure(Cause.INVALID_INPUT, problem))
        if prompt_tokens + work.start_index >= settings.context_tokens:
            detail = f"{prompt_tokens} input tokens do not fit a context of {settings.context_tokens}"
            raise EngineRefused(Failure(Cause.CONTEXT_LENGTH, detail))
        chain = TokenChain(digest, work.input)
        stops = StopFilter(work.stop)
        for token_id in work.replay_token_ids:
            chain.absorb(token_id)
            # What the first node held back for a stop string is still held back here.
            stops.push(token_text(token_id))
        bounds = settings.natural_length
        return cls(
            work=work,
            prompt_tokens=prompt_tokens,
            chain=chain,
            stops=stops,
            limit=min(work.max_tokens, settings.context_tokens - prompt_tokens - work.start_index),
            natural_end=None if bounds is None else oracle_length(digest, work.input, bounds),
            submitted_s=now_s,
        )

    @property
    def next_index(self) -> int:
        return self.work.start_index + self.produced

    def advance(self, now: Callable[[], float], batch_size: int) -> SequenceOutput:
        """The next token, or the natural end. `now` is read once a first token is there."""
        index = self.next_index
        if self.natural_end is not None and index >= self.natural_end:
            finish = Finish(FinishReason.STOP, self._usage())
            return SequenceOutput(self.work.key, index, text=self.stops.flush(), finish=finish)
        token_id = self.chain.next()
        self.produced += 1
        text, stopped = self.stops.push(token_text(token_id))
        reason: FinishReason | None = None
        if stopped:
            reason = FinishReason.STOP
        elif self.produced >= self.limit:
            reason = FinishReason.LENGTH
            text += self.stops.flush()
        return SequenceOutput(
            key=self.work.key,
            first_index=index,
            count=1,
            token_ids=(token_id,),
            text=text,
            first_token=self._first_token(now(), batch_size) if self.produced == 1 else None,
            finish=None if reason is None else Finish(reason, self._usage()),
        )

    def fail(self, failure: Failure) -> SequenceOutput:
        return SequenceOutput(self.work.key, self.next_index, finish=Finish(failure, self._usage()))

    def _usage(self) -> Usage:
        return Usage(self.prompt_tokens, self.produced, self.cached_tokens)

    def _first_token(self, now_s: float, batch_size: int) -> FirstToken:
        return FirstToken(
            queue_ms=(self.started_s - self.submitted_s) * 1000.0,
            prefill_ms=(now_s - self.started_s) * 1000.0,
            cached_tokens=self.cached_tokens,
            batch_size=batch_size,
            prompt_tokens=self.prompt_tokens,
        )


def _problem(work: Work) -> str:
    """What is wrong with the input, without any of its text; "" for nothing."""
    if work.max_tokens < 1:
        return "max_tokens must be at least 1"
    if len(work.replay_token_ids) != work.start_index:
        return "start_index must be the number of replayed tokens"
    try:
        if work.input_kind is InputKind.CHAT:
            parse_canonical(work.input)
        else:
            work.input.decode("utf-8")
    except ValueError:
        return f"the input is not valid {work.input_kind.value}"
    return ""
