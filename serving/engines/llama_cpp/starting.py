"""From prepared work to a sequence in a slot, or to its end where there is nothing to compute."""

from __future__ import annotations

from serving.engines.llama_cpp.constraint import Constraint, FormatError
from serving.engines.llama_cpp.native import Model
from serving.engines.llama_cpp.prefix import PrefixCache
from serving.engines.llama_cpp.protocol import ChildConfig, Emission
from serving.engines.llama_cpp.sampling import SamplerChain, SamplingDefaults
from serving.engines.llama_cpp.sequence import Prepared, Running, cache_namespace
from serving.engines.llama_cpp.text import TextAssembler
from serving.engines.queue import Waiting
from tidegate.routing.domain import Cause, Failure, Finish, FinishReason, Usage
from tidegate.routing.domain.work import PUBLIC


class Starter:
    """Takes slots of `cache`; there must be an idle one."""

    def __init__(self, model: Model, config: ChildConfig, cache: PrefixCache) -> None:
        self._model, self._cache = model, cache
        self._context_tokens = config.context_tokens
        self._defaults = SamplingDefaults(config.temperature, config.top_k, config.top_p, config.min_p)

    def start(self, waiting: Waiting[Prepared], now_ms: float) -> Running | Emission:
        """The sequence in its slot; its only emission if it ends at once."""
        item, work = waiting.item, waiting.item.work
        room = self._context_tokens - item.prompt_tokens
        limit_index = min(work.max_tokens, room) if work.max_tokens > 0 else room
        text = TextAssembler(work.stop)
        ended = work.start_index >= limit_index
        for token in work.replay_token_ids:
            stopped = text.push(item.shown.get(token) or self._model.piece(token))[1]
            if stopped or self._model.is_end(token):
                ended = True
                break
        if ended:
            reason = FinishReason.LENGTH if work.start_index >= limit_index else FinishReason.STOP
            usage = Usage(item.prompt_tokens, work.start_index, 0)
            return Emission(item.sid, work.start_index, finish=Finish(reason, usage))
        try:
            sampler = self._sampler(item)
        except FormatError as error:
            return refusal(item, Failure(Cause.INVALID_INPUT, str(error)))
        return Running(
            sid=item.sid,
            work=work,
            prompt=item.prompt,
            prompt_tokens=item.prompt_tokens,
            names=item.names,
            lease=self._cache.take(
                item.prompt, cache_namespace(work), item.names, public=work.data_class == PUBLIC
            ),
            sampler=sampler,
            text=text,
            limit_index=limit_index,
            arrived_ms=item.arrived_ms,
            admitted_ms=now_ms,
            index=work.start_index,
            deadline_ms=waiting.hard_deadline_ms,
            first_token_due_ms=waiting.ttft_deadline_ms,
            shown=item.shown,
        )

    def _sampler(self, item: Prepared) -> SamplerChain:
        """With the replayed tokens counted. Raises FormatError."""
        work, prompt = item.work, item.prompt[: item.prompt_tokens]
        constraint = Constraint(self._model, item.grammar) if item.grammar else None
        room = self._context_tokens
        sampler = SamplerChain(self._model, work.sampling, self._defaults, prompt, room, constraint)
        if not all(sampler.replay(token) for token in work.replay_token_ids):
            sampler.close()
            raise FormatError("the tokens to replay do not fit the format")
        return sampler


def refusal(item: Prepared, failure: Failure) -> Emission:
    """The end of work that was never started."""
    return Emission(item.sid, item.work.start_index, finish=Finish(failure, Usage(item.prompt_tokens, 0, 0)))
