"""One chain of llama.cpp samplers per sequence."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from typing import TypeVar

from serving.engines.llama_cpp.constraint import Constraint
from serving.engines.llama_cpp.native import C, Context, Model, Tokens
from tidegate.routing.domain import Sampling

_T = TypeVar("_T", int, float)

_REPEAT_WINDOW = 64
_SEED_MASK = 0xFFFF_FFFF
# llama.cpp takes this seed for "a random one".
_RANDOM_SEED = 0xFFFF_FFFF
# Mirostat's target, rate, and how many tokens version 1 estimates from: llama.cpp's defaults.
_TAU, _ETA, _SURVEYED = 5.0, 0.1, 100


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What holds where a request says nothing."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float


def position_seed(seed: int, index: int) -> int:
    """A seed per output index (SplitMix64), so that a replayed sequence goes on with the same draws."""
    mixed = (seed * 0x9E3779B97F4A7C15 + (index + 1) * 0xBF58476D1CE4E5B9) & 0xFFFF_FFFF_FFFF_FFFF
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFF_FFFF_FFFF_FFFF
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFF_FFFF_FFFF_FFFF
    result = (mixed ^ (mixed >> 31)) & _SEED_MASK
    return result if result != _RANDOM_SEED else 0


class SamplerChain:
    """Chooses tokens for one sequence. Must be closed.

    Order: biases, penalties, top-k, top-p, min-p, temperature, draw; temperature 0 draws the likeliest token.
    Mirostat takes the place of top-k, top-p, min-p and the draw. What it has learned ends with the chain: a
    sequence that goes on elsewhere begins anew.
    `constraint` is closed with the chain.
    """

    def __init__(
        self,
        model: Model,
        sampling: Sampling,
        defaults: SamplingDefaults,
        prompt: Tokens,
        context_tokens: int,
        constraint: Constraint | None = None,
    ) -> None:
        self._constraint = constraint
        self._chain = C.llama_sampler_chain_init(C.llama_sampler_chain_default_params())
        self._length = 0
        self._seed: int | None = None
        if sampling.logit_bias:
            self._add_biases(model, sampling)
        self._add_penalties(model, sampling, prompt, context_tokens)
        temperature = _or(sampling.temperature, defaults.temperature)
        self._takes_likeliest = temperature <= 0.0 and self._length == 0 and constraint is None
        if temperature <= 0.0:
            self._add(C.llama_sampler_init_greedy())
            return
        if sampling.mirostat:
            self._add_mirostat(model, sampling, temperature)
            return
        top_k, top_p = _or(sampling.top_k, defaults.top_k), _or(sampling.top_p, defaults.top_p)
        min_p = _or(sampling.min_p, defaults.min_p)
        if top_k > 0:
            self._add(C.llama_sampler_init_top_k(min(top_k, model.n_vocab)))
        if top_p < 1.0:
            self._add(C.llama_sampler_init_top_p(top_p, 1))
        if min_p > 0.0:
            self._add(C.llama_sampler_init_min_p(min_p, 1))
        self._add(C.llama_sampler_init_temp(temperature))
        self._seed = sampling.seed
        seed = secrets.randbelow(_RANDOM_SEED) if self._seed is None else position_seed(self._seed, 0)
        self._add(C.llama_sampler_init_dist(seed))

    def _add_mirostat(self, model: Model, sampling: Sampling, temperature: float) -> None:
        tau, eta = _or(sampling.mirostat_tau, _TAU), _or(sampling.mirostat_eta, _ETA)
        # It draws by itself: its random numbers follow from the seed, but not from the position.
        seed = secrets.randbelow(_RANDOM_SEED) if sampling.seed is None else position_seed(sampling.seed, 0)
        self._add(C.llama_sampler_init_temp(temperature))
        if sampling.mirostat == 1:
            self._add(C.llama_sampler_init_mirostat(model.n_vocab, seed, tau, eta, _SURVEYED))
        else:
            self._add(C.llama_sampler_init_mirostat_v2(seed, tau, eta))

    def _add_biases(self, model: Model, sampling: Sampling) -> None:
        known = [(token, bias) for token, bias in sampling.logit_bias if token < model.n_vocab]
        biases = (C.llama_logit_bias * len(known))(
            *(C.llama_logit_bias(token, -math.inf if bias <= -100.0 else bias) for token, bias in known)
        )
        self._add(C.llama_sampler_init_logit_bias(model.n_vocab, len(known), biases))

    def _add_penalties(self, model: Model, sampling: Sampling, prompt: Tokens, context_tokens: int) -> None:
        repeat = _or(sampling.repeat_penalty, 1.0)
        if repeat != 1.0:
            sampler = C.llama_sampler_init_penalties(model.n_vocab, _REPEAT_WINDOW, repeat, 0.0, 0.0)
            for token in prompt[-_REPEAT_WINDOW:].tolist():
                C.llama_sampler_accept(sampler, token)
            self._add(sampler)
        frequency, presence = _or(sampling.frequency_penalty, 0.0), _or(sampling.presence_penalty, 0.0)
        if frequency != 0.0 or presence != 0.0:
            # These count the answer only, all of it, as OpenAI's API defines them.
            self._add(C.llama_sampler_init_penalties(model.n_vocab, context_tokens, 1.0, frequency, presence))

    def _add(self, sampler: object) -> None:
        C.llama_sampler_chain_add(self._chain, sampler)
        self._length += 1

    def sample(self, context: Context, entry: int, index: int) -> int:
        """The token at output `index`, from the logits of batch entry `entry`; DEAD_END when none fits."""
        if self._takes_likeliest:
            # llama.cpp would first write all of the vocabulary into a list of candidates: ten times slower.
            return context.likeliest(entry)
        if self._seed is not None:
            last = self._length - 1
            C.llama_sampler_free(C.llama_sampler_chain_remove(self._chain, last))
            C.llama_sampler_chain_add(
                self._chain, C.llama_sampler_init_dist(position_seed(self._seed, index))
            )
        if self._constraint is not None:
            return self._constraint.choose(self._chain, context, entry)
        token: int = C.llama_sampler_sample(self._chain, context.handle, entry)
        return token

    def replay(self, token: int) -> bool:
        """Counts a token that was chosen elsewhere; False when it cannot have been."""
        if self._constraint is not None and not self._constraint.replay(token):
            return False
        C.llama_sampler_accept(self._chain, token)
        return True

    def close(self) -> None:
        if self._constraint is not None:
            self._constraint.close()
        C.llama_sampler_free(self._chain)


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value
