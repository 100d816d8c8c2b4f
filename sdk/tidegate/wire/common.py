"""Conversions of tidegate.common.v1: enums, messages, sampling, budget, usage, timings, variants, speeds.

`encode_x` makes protobuf, `decode_x` makes domain values. Decoding raises ServeError(INVALID_ARGUMENT) with
the offending field in `param`; ranges are checked by tidegate.wire.validate, on whole requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TypeVar

from tidegate.common.v1 import common_pb2 as pb
from tidegate.routing.domain import (
    Budget,
    Code,
    FinishReason,
    Message,
    OutputFormat,
    Power,
    ReplayClass,
    Role,
    Sampling,
    ServeError,
    Speeds,
    Tier,
    Timings,
    TokenLogprob,
    Unit,
    Usage,
    Variant,
)

E = TypeVar("E")

MAX_NAMES = 64
MAX_TOP_LOGPROBS = 20
# No token of any vocabulary is longer.
MAX_TOKEN_BYTES = 1024
MAX_TOKENS_PER_S = 1e7
MAX_WATTS = 1e6

ROLES: Mapping[Role, pb.Role.ValueType] = {
    Role.SYSTEM: pb.ROLE_SYSTEM,
    Role.USER: pb.ROLE_USER,
    Role.ASSISTANT: pb.ROLE_ASSISTANT,
    Role.TOOL: pb.ROLE_TOOL,
}
UNITS: Mapping[Unit, pb.Unit.ValueType] = {Unit.TOKEN: pb.UNIT_TOKEN, Unit.DELTA: pb.UNIT_DELTA}
FINISH_REASONS: Mapping[FinishReason, pb.FinishReason.ValueType] = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: pb.FINISH_REASON_CANCELLED,
}
TIERS: Mapping[Tier, pb.Tier.ValueType] = {Tier.EDGE: pb.TIER_EDGE, Tier.CLOUD: pb.TIER_CLOUD}
REPLAY_CLASSES: Mapping[ReplayClass, pb.ReplayClass.ValueType] = {
    ReplayClass.NONE: pb.REPLAY_CLASS_NONE,
    ReplayClass.TEXT: pb.REPLAY_CLASS_TEXT,
    ReplayClass.TOKENS: pb.REPLAY_CLASS_TOKENS,
}

_ROLES_BACK: Mapping[int, Role] = {v: k for k, v in ROLES.items()}
# An absent unit means tokens, an absent replay class none: what the weakest sender can be taken to mean.
_UNITS_BACK: Mapping[int, Unit] = {0: Unit.TOKEN, **{v: k for k, v in UNITS.items()}}
_FINISH_REASONS_BACK: Mapping[int, FinishReason] = {v: k for k, v in FINISH_REASONS.items()}
_TIERS_BACK: Mapping[int, Tier] = {v: k for k, v in TIERS.items()}
_REPLAY_CLASSES_BACK: Mapping[int, ReplayClass] = {
    0: ReplayClass.NONE,
    **{v: k for k, v in REPLAY_CLASSES.items()},
}


def invalid(param: str, message: str) -> ServeError:
    """The error of a field that cannot be accepted."""
    return ServeError(Code.INVALID_ARGUMENT, f"{param}: {message}", reason="INVALID_FIELD", param=param)


def decode_enum(table: Mapping[int, E], value: int, param: str) -> E:
    """Looks `value` up; an unknown or unspecified number is INVALID_ARGUMENT."""
    try:
        return table[value]
    except KeyError:
        word = "is not set" if value == 0 else f"has the unknown value {value}"
        raise invalid(param, word) from None


def decode_role(value: int, param: str = "role") -> Role:
    return decode_enum(_ROLES_BACK, value, param)


def decode_unit(value: int, param: str = "unit") -> Unit:
    return decode_enum(_UNITS_BACK, value, param)


def decode_finish_reason(value: int, param: str = "reason") -> FinishReason:
    return decode_enum(_FINISH_REASONS_BACK, value, param)


def decode_tier(value: int, param: str = "tier") -> Tier:
    return decode_enum(_TIERS_BACK, value, param)


def decode_replay_class(value: int, param: str = "replay_class") -> ReplayClass:
    return decode_enum(_REPLAY_CLASSES_BACK, value, param)


def encode_message(message: Message) -> pb.Message:
    return pb.Message(role=ROLES[message.role], content=message.content, name=message.name)


def decode_message(message: pb.Message, param: str = "message") -> Message:
    return Message(
        role=decode_role(message.role, f"{param}.role"), content=message.content, name=message.name
    )


def encode_sampling(sampling: Sampling) -> pb.Sampling:
    """None stays unset; protobuf constructors take None as "do not set"."""
    return pb.Sampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        repeat_penalty=sampling.repeat_penalty,
        seed=sampling.seed,
        logit_bias=[pb.LogitBias(token_id=token, bias=bias) for token, bias in sampling.logit_bias],
        mirostat=sampling.mirostat,
        mirostat_tau=sampling.mirostat_tau,
        mirostat_eta=sampling.mirostat_eta,
    )


def decode_sampling(sampling: pb.Sampling) -> Sampling:
    return Sampling(
        temperature=sampling.temperature if sampling.HasField("temperature") else None,
        top_p=sampling.top_p if sampling.HasField("top_p") else None,
        top_k=sampling.top_k if sampling.HasField("top_k") else None,
        min_p=sampling.min_p if sampling.HasField("min_p") else None,
        frequency_penalty=sampling.frequency_penalty if sampling.HasField("frequency_penalty") else None,
        presence_penalty=sampling.presence_penalty if sampling.HasField("presence_penalty") else None,
        repeat_penalty=sampling.repeat_penalty if sampling.HasField("repeat_penalty") else None,
        seed=sampling.seed if sampling.HasField("seed") else None,
        logit_bias=tuple((each.token_id, each.bias) for each in sampling.logit_bias),
        mirostat=sampling.mirostat if sampling.HasField("mirostat") else None,
        mirostat_tau=sampling.mirostat_tau if sampling.HasField("mirostat_tau") else None,
        mirostat_eta=sampling.mirostat_eta if sampling.HasField("mirostat_eta") else None,
    )


def encode_format(format: OutputFormat) -> pb.OutputFormat | None:
    if not format:
        return None
    if format.json_schema:
        return pb.OutputFormat(json_schema=format.json_schema, or_text=format.or_text)
    return pb.OutputFormat(grammar=format.grammar)


def decode_format(format: pb.OutputFormat) -> OutputFormat:
    return OutputFormat(format.json_schema, format.grammar, format.or_text)


def encode_logprob(logprob: TokenLogprob) -> pb.TokenLogprob:
    return pb.TokenLogprob(
        token_id=logprob.token_id,
        text=logprob.text,
        logprob=logprob.logprob,
        top=[encode_logprob(each) for each in logprob.top],
        margin=logprob.margin,
        entropy=logprob.entropy,
    )


def decode_logprobs(logprobs: Iterable[pb.TokenLogprob], limit: int) -> tuple[TokenLogprob, ...]:
    """At most `limit` of them: a node may not fill our memory with more than it gave tokens."""
    return tuple(_decode_logprob(each) for each in islice(logprobs, max(0, limit)))


def _decode_logprob(logprob: pb.TokenLogprob, *, inner: bool = False) -> TokenLogprob:
    top = () if inner else logprob.top[:MAX_TOP_LOGPROBS]
    return TokenLogprob(
        logprob.token_id,
        logprob.text[:MAX_TOKEN_BYTES],
        logprob.logprob,
        tuple(_decode_logprob(each, inner=True) for each in top),
        logprob.margin,
        logprob.entropy,
    )


def encode_budget(budget: Budget) -> pb.Budget:
    return pb.Budget(
        ttft_ms=budget.ttft_ms,
        tpot_ms=budget.tpot_ms,
        total_ms=budget.total_ms,
        target_share=budget.target_share,
    )


def decode_budget(budget: pb.Budget) -> Budget:
    return Budget(
        ttft_ms=budget.ttft_ms if budget.HasField("ttft_ms") else None,
        tpot_ms=budget.tpot_ms if budget.HasField("tpot_ms") else None,
        total_ms=budget.total_ms if budget.HasField("total_ms") else None,
        target_share=budget.target_share if budget.HasField("target_share") else None,
    )


def encode_usage(usage: Usage) -> pb.Usage:
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
    )


def decode_usage(usage: pb.Usage) -> Usage:
    return Usage(
        prompt_tokens=max(0, usage.prompt_tokens),
        completion_tokens=max(0, usage.completion_tokens),
        cached_tokens=max(0, usage.cached_tokens),
    )


def encode_timings(timings: Timings) -> pb.Timings:
    return pb.Timings(
        queue_ms=timings.queue_ms,
        prefill_ms=timings.prefill_ms,
        ttft_ms=timings.ttft_ms,
        tpot_ms=timings.tpot_ms,
        total_ms=timings.total_ms,
        batch_size=timings.batch_size,
    )


def decode_timings(timings: pb.Timings) -> Timings:
    return Timings(
        queue_ms=timings.queue_ms,
        prefill_ms=timings.prefill_ms,
        ttft_ms=timings.ttft_ms,
        tpot_ms=timings.tpot_ms,
        total_ms=timings.total_ms,
        batch_size=timings.batch_size,
    )


def encode_power(power: Power | None) -> pb.Power | None:
    if power is None:
        return None
    return pb.Power(
        on_battery=power.on_battery,
        battery_share=power.battery_share,
        draw_w=power.draw_w,
        work_w=power.work_w,
        metered=power.metered,
    )


def decode_power(power: pb.Power) -> Power:
    return Power(
        on_battery=power.on_battery,
        battery_share=sane(power.battery_share, 1.0) if power.HasField("battery_share") else None,
        draw_w=sane(power.draw_w, MAX_WATTS) if power.HasField("draw_w") else None,
        work_w=sane(power.work_w, MAX_WATTS) if power.HasField("work_w") else None,
        metered=power.metered,
    )


def sane(value: float, high: float = 1e12) -> float:
    """A number another program claims, as one that can be computed with: finite and in [0, high], else 0."""
    return value if 0.0 <= value <= high else 0.0


def label(text: str, param: str, *, limit: int = 256) -> str:
    """A name another program claims. Raises ServeError when it is long or holds control characters."""
    if len(text) > limit:
        raise invalid(param, f"is longer than {limit} characters")
    if not text.isprintable():
        raise invalid(param, "holds characters that cannot be printed")
    return text


def encode_variant(variant: Variant) -> pb.Variant:
    """Capabilities are sorted, so that equal variants have equal bytes."""
    return pb.Variant(
        model=variant.model,
        digest=variant.digest,
        quantization=variant.quantization,
        context_tokens=variant.context_tokens,
        perplexity=variant.perplexity,
        capabilities=sorted(variant.capabilities),
        aliases=variant.aliases,
        accuracy=variant.accuracy,
    )


def decode_variant(variant: pb.Variant, param: str = "variant") -> Variant:
    """A variant without a name or identity, or without room for a token, is refused."""
    if not variant.model:
        raise invalid(f"{param}.model", "is empty")
    if not variant.digest:
        raise invalid(f"{param}.digest", "is empty")
    if variant.context_tokens <= 0:
        raise invalid(f"{param}.context_tokens", "must be above 0")
    if len(variant.capabilities) > MAX_NAMES or len(variant.aliases) > MAX_NAMES:
        raise invalid(param, f"has more than {MAX_NAMES} capabilities or aliases")
    perplexity = variant.perplexity if variant.HasField("perplexity") else None
    accuracy = variant.accuracy if variant.HasField("accuracy") else None
    return Variant(
        model=label(variant.model, f"{param}.model"),
        digest=label(variant.digest, f"{param}.digest"),
        quantization=label(variant.quantization, f"{param}.quantization"),
        context_tokens=variant.context_tokens,
        # A perplexity below 1 cannot be: nobody measured it.
        perplexity=perplexity if perplexity is not None and 1.0 <= perplexity <= 1e9 else None,
        capabilities=frozenset(label(c, f"{param}.capabilities") for c in variant.capabilities),
        aliases=tuple(label(a, f"{param}.aliases") for a in variant.aliases),
        accuracy=accuracy if accuracy is not None and 0.0 <= accuracy <= 1.0 else None,
    )


def encode_speeds(speeds: Speeds) -> pb.Speeds:
    return pb.Speeds(
        prefill_tokens_per_s=speeds.prefill_tokens_per_s,
        decode=[pb.SpeedPoint(batch_size=b, tokens_per_s=t) for b, t in speeds.decode],
        age_ms=speeds.age_ms,
    )


def decode_speeds(speeds: pb.Speeds) -> Speeds:
    return Speeds(
        prefill_tokens_per_s=sane(speeds.prefill_tokens_per_s, MAX_TOKENS_PER_S),
        decode=tuple(
            (point.batch_size, point.tokens_per_s)
            for point in speeds.decode[:MAX_NAMES]
            if point.batch_size > 0 and 0.0 < point.tokens_per_s <= MAX_TOKENS_PER_S
        ),
        age_ms=sane(speeds.age_ms),
    )
