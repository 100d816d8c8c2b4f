"""Between the node protocol's messages and the domain's values; used by both ends of a link."""

from __future__ import annotations

from tidegate.common.v1 import common_pb2
from tidegate.node.v1 import node_pb2
from tidegate.routing.domain import (
    Announcement,
    AttemptKey,
    CacheDelta,
    Cause,
    Failure,
    Finish,
    FinishReason,
    FirstToken,
    InputKind,
    NodeLoad,
    ReplayClass,
    SequenceOutput,
    Unit,
    Work,
)
from tidegate.wire import common as wire

PROTOCOL_VERSION = 1_000
MAX_SEQUENCES = 65_536
MAX_DETAIL_CHARS = 300
MAX_WAKE_MS = 3_600_000.0

_CAUSE_TO_PB = {
    Cause.ENGINE_CRASHED: node_pb2.FAILURE_CAUSE_ENGINE_CRASHED,
    Cause.ENGINE_HUNG: node_pb2.FAILURE_CAUSE_ENGINE_HUNG,
    Cause.INVALID_INPUT: node_pb2.FAILURE_CAUSE_INVALID_INPUT,
    Cause.UPSTREAM: node_pb2.FAILURE_CAUSE_UPSTREAM,
    Cause.OVERLOADED: node_pb2.FAILURE_CAUSE_OVERLOADED,
    Cause.DRAINING: node_pb2.FAILURE_CAUSE_DRAINING,
    Cause.FENCED: node_pb2.FAILURE_CAUSE_FENCED,
    Cause.UNKNOWN_VARIANT: node_pb2.FAILURE_CAUSE_UNKNOWN_VARIANT,
    Cause.DEADLINE: node_pb2.FAILURE_CAUSE_DEADLINE,
    Cause.INTERNAL: node_pb2.FAILURE_CAUSE_INTERNAL,
    Cause.CONTEXT_LENGTH: node_pb2.FAILURE_CAUSE_CONTEXT_LENGTH,
}
_CAUSE_FROM_PB = {number: cause for cause, number in _CAUSE_TO_PB.items()}
_REASON_TO_PB = {
    FinishReason.STOP: common_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: common_pb2.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: common_pb2.FINISH_REASON_CANCELLED,
}
_REASON_FROM_PB = {number: reason for reason, number in _REASON_TO_PB.items()}
_UNIT_TO_PB = {Unit.TOKEN: common_pb2.UNIT_TOKEN, Unit.DELTA: common_pb2.UNIT_DELTA}
_UNIT_FROM_PB = {number: unit for unit, number in _UNIT_TO_PB.items()}
_REPLAY_TO_PB = {
    ReplayClass.NONE: common_pb2.REPLAY_CLASS_NONE,
    ReplayClass.TEXT: common_pb2.REPLAY_CLASS_TEXT,
    ReplayClass.TOKENS: common_pb2.REPLAY_CLASS_TOKENS,
}
_REPLAY_FROM_PB = {number: replay for replay, number in _REPLAY_TO_PB.items()}
_KIND_TO_PB = {
    InputKind.CHAT: node_pb2.INPUT_KIND_CHAT,
    InputKind.TEXT: node_pb2.INPUT_KIND_TEXT,
    InputKind.EMBED: node_pb2.INPUT_KIND_EMBED,
}
_KIND_FROM_PB = {number: kind for kind, number in _KIND_TO_PB.items()}


def key_to_pb(key: AttemptKey) -> node_pb2.AttemptKey:
    return node_pb2.AttemptKey(request_id=key.request_id, attempt_no=key.attempt_no)


def key_from_pb(pb: node_pb2.AttemptKey) -> AttemptKey:
    return AttemptKey(pb.request_id, pb.attempt_no)


def proof_message(nonce: bytes, announcement: Announcement, link_epoch: int) -> bytes:
    """What a node signs to show that its id is its own; see Register.signature."""
    parts = (b"tidegate-register", nonce, announcement.node_id.encode(), announcement.boot_id.encode())
    return b"\0".join((*parts, str(link_epoch).encode()))


def register_to_pb(
    announcement: Announcement,
    *,
    link_epoch: int,
    join_token: str,
    protocol_version: int = PROTOCOL_VERSION,
    proof: tuple[bytes, bytes] = (b"", b""),
) -> node_pb2.Register:
    """`proof` is the public key and the signature over proof_message()."""
    return node_pb2.Register(
        node_id=announcement.node_id,
        boot_id=announcement.boot_id,
        link_epoch=link_epoch,
        name=announcement.name,
        join_token=join_token,
        protocol_version=protocol_version,
        variants=[wire.encode_variant(v) for v in announcement.variants],
        slots=announcement.slots,
        queue_limit=announcement.queue_limit,
        build=announcement.build,
        replay_class=_REPLAY_TO_PB[announcement.replay_class],
        replay_digest=announcement.replay_digest,
        hardware_class=announcement.hardware_class,
        speeds=wire.encode_speeds(announcement.speeds),
        direct_endpoints=announcement.direct_endpoints,
        public_key=proof[0],
        signature=proof[1],
    )


def register_from_pb(pb: node_pb2.Register) -> Announcement:
    """Raises ServeError(INVALID_ARGUMENT) for what no proper node says of itself."""
    if len(pb.variants) > wire.MAX_NAMES or len(pb.direct_endpoints) > wire.MAX_NAMES:
        raise wire.invalid("variants", f"more than {wire.MAX_NAMES} variants or endpoints")
    return Announcement(
        node_id=wire.label(pb.node_id, "node_id", limit=128),
        boot_id=wire.label(pb.boot_id, "boot_id", limit=128),
        name=wire.label(pb.name or pb.node_id[:12], "name", limit=128),
        variants=tuple(wire.decode_variant(v) for v in pb.variants),
        slots=min(max(1, pb.slots), MAX_SEQUENCES),
        queue_limit=min(max(0, pb.queue_limit), MAX_SEQUENCES),
        build=wire.label(pb.build, "build"),
        replay_class=_REPLAY_FROM_PB.get(pb.replay_class, ReplayClass.NONE),
        replay_digest=wire.label(pb.replay_digest, "replay_digest"),
        hardware_class=wire.label(pb.hardware_class, "hardware_class"),
        speeds=wire.decode_speeds(pb.speeds),
        direct_endpoints=tuple(wire.label(e, "direct_endpoints") for e in pb.direct_endpoints),
    )


def load_to_pb(load: NodeLoad) -> node_pb2.Heartbeat:
    return node_pb2.Heartbeat(
        running=load.running,
        queued=load.queued,
        pending_prefill_tokens=load.pending_prefill_tokens,
        pending_decode_tokens=load.pending_decode_tokens,
        free_cache_tokens=load.free_cache_tokens,
        last_work_seq=load.last_work_seq,
        ready=load.ready,
        progress_age_ms=load.progress_age_ms,
        draining=load.draining,
        speeds=None if load.speeds is None else wire.encode_speeds(load.speeds),
        power=wire.encode_power(load.power),
        wake_ms=load.wake_ms,
        trouble=load.trouble,
        pinned_tokens=load.pinned_tokens,
        usable_slots=load.usable_slots,
    )


def load_from_pb(pb: node_pb2.Heartbeat) -> NodeLoad:
    return NodeLoad(
        running=max(0, pb.running),
        queued=max(0, pb.queued),
        pending_prefill_tokens=max(0, pb.pending_prefill_tokens),
        pending_decode_tokens=max(0, pb.pending_decode_tokens),
        free_cache_tokens=max(0, pb.free_cache_tokens),
        last_work_seq=max(0, pb.last_work_seq),
        ready=pb.ready,
        progress_age_ms=wire.sane(pb.progress_age_ms),
        draining=pb.draining,
        speeds=wire.decode_speeds(pb.speeds) if pb.HasField("speeds") else None,
        power=wire.decode_power(pb.power) if pb.HasField("power") else None,
        wake_ms=wire.sane(pb.wake_ms, MAX_WAKE_MS),
        trouble=_one_line(pb.trouble),
        pinned_tokens=max(0, pb.pinned_tokens),
        usable_slots=min(max(0, pb.usable_slots), MAX_SEQUENCES),
    )


def cache_to_pb(delta: CacheDelta) -> node_pb2.CacheReport:
    return node_pb2.CacheReport(held=delta.held, evicted=delta.evicted, digest=delta.digest, full=delta.full)


def cache_from_pb(pb: node_pb2.CacheReport) -> CacheDelta:
    return CacheDelta(held=tuple(pb.held), evicted=tuple(pb.evicted), digest=pb.digest, full=pb.full)


def work_to_pb(work: Work, first_fragment: bytes) -> node_pb2.Work:
    """The head of a work; the rest of its input follows in fragments."""
    return node_pb2.Work(
        key=key_to_pb(work.key),
        tenant=work.tenant,
        variant_digest=work.variant_digest,
        input_kind=_KIND_TO_PB[work.input_kind],
        input_bytes=len(work.input),
        first_fragment=first_fragment,
        prefix_hashes=work.prefix_hashes,
        sampling=wire.encode_sampling(work.sampling),
        max_tokens=work.max_tokens,
        stop=work.stop,
        remaining_ms=work.remaining_ms,
        ttft_remaining_ms=work.ttft_remaining_ms,
        priority=work.priority,
        credits=work.credits,
        start_index=work.start_index,
        replay_token_ids=work.replay_token_ids,
        detach_grace_ms=work.detach_grace_ms,
        work_seq=work.work_seq,
        adapter=work.adapter,
        most_ahead=work.most_ahead,
        format=wire.encode_format(work.format),
        top_logprobs=work.top_logprobs,
        data_class=work.data_class,
    )


def work_from_pb(pb: node_pb2.Work) -> Work:
    """`input` holds the first fragment only; pb.input_bytes says how much there will be."""
    return Work(
        key=key_from_pb(pb.key),
        tenant=pb.tenant,
        variant_digest=pb.variant_digest,
        input_kind=_KIND_FROM_PB.get(pb.input_kind, InputKind.CHAT),
        input=pb.first_fragment,
        sampling=wire.decode_sampling(pb.sampling),
        max_tokens=pb.max_tokens,
        stop=tuple(pb.stop),
        prefix_hashes=tuple(pb.prefix_hashes),
        remaining_ms=pb.remaining_ms if pb.HasField("remaining_ms") else None,
        ttft_remaining_ms=pb.ttft_remaining_ms if pb.HasField("ttft_remaining_ms") else None,
        priority=pb.priority,
        credits=max(1, pb.credits),
        start_index=pb.start_index,
        replay_token_ids=tuple(pb.replay_token_ids),
        detach_grace_ms=pb.detach_grace_ms,
        work_seq=pb.work_seq,
        adapter=pb.adapter,
        most_ahead=pb.most_ahead if pb.HasField("most_ahead") else None,
        format=wire.decode_format(pb.format),
        top_logprobs=pb.top_logprobs if pb.HasField("top_logprobs") else None,
        data_class=pb.data_class,
    )


def failure_to_pb(failure: Failure) -> node_pb2.Failure:
    return node_pb2.Failure(
        cause=_CAUSE_TO_PB.get(failure.cause, node_pb2.FAILURE_CAUSE_INTERNAL), detail=failure.detail
    )


def failure_from_pb(pb: node_pb2.Failure) -> Failure:
    """The detail reaches clients and logs."""
    return Failure(_CAUSE_FROM_PB.get(pb.cause, Cause.INTERNAL), _one_line(pb.detail))


def _one_line(text: str) -> str:
    """Of bounded length: a node's words reach terminals."""
    return "".join(c if c.isprintable() else " " for c in text[:MAX_DETAIL_CHARS])


def _finish_to_pb(finish: Finish) -> node_pb2.Finish:
    usage = wire.encode_usage(finish.usage)
    if isinstance(finish.result, Failure):
        return node_pb2.Finish(failure=failure_to_pb(finish.result), usage=usage)
    return node_pb2.Finish(reason=_REASON_TO_PB[finish.result], usage=usage)


def _finish_from_pb(pb: node_pb2.Finish) -> Finish:
    usage = wire.decode_usage(pb.usage)
    if pb.WhichOneof("result") == "failure":
        return Finish(failure_from_pb(pb.failure), usage)
    return Finish(_REASON_FROM_PB.get(pb.reason, FinishReason.STOP), usage)


def output_to_pb(output: SequenceOutput) -> node_pb2.SequenceOutput:
    first = output.first_token
    return node_pb2.SequenceOutput(
        key=key_to_pb(output.key),
        first_index=output.first_index,
        count=output.count,
        token_ids=output.token_ids,
        text=output.text,
        unit=_UNIT_TO_PB[output.unit],
        first_token=None
        if first is None
        else node_pb2.FirstToken(
            queue_ms=first.queue_ms,
            prefill_ms=first.prefill_ms,
            cached_tokens=first.cached_tokens,
            batch_size=first.batch_size,
            prompt_tokens=first.prompt_tokens,
            wake_ms=first.wake_ms,
        ),
        finish=None if output.finish is None else _finish_to_pb(output.finish),
        vectors=output.vectors,
        logprobs=[wire.encode_logprob(each) for each in output.logprobs],
    )


def output_from_pb(pb: node_pb2.SequenceOutput) -> SequenceOutput:
    first = pb.first_token
    return SequenceOutput(
        key=key_from_pb(pb.key),
        first_index=pb.first_index,
        count=pb.count,
        token_ids=tuple(pb.token_ids),
        text=pb.text,
        unit=_UNIT_FROM_PB.get(pb.unit, Unit.TOKEN),
        first_token=FirstToken(
            queue_ms=wire.sane(first.queue_ms),
            prefill_ms=wire.sane(first.prefill_ms),
            cached_tokens=max(0, first.cached_tokens),
            batch_size=max(0, first.batch_size),
            prompt_tokens=max(0, first.prompt_tokens),
            wake_ms=wire.sane(first.wake_ms, MAX_WAKE_MS),
        )
        if pb.HasField("first_token")
        else None,
        finish=_finish_from_pb(pb.finish) if pb.HasField("finish") else None,
        vectors=pb.vectors,
        logprobs=wire.decode_logprobs(pb.logprobs, pb.count),
    )
