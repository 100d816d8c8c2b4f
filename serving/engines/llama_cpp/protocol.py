"""Frames between the engine in the daemon and its child: a 4-byte big-endian length, then JSON.

JSON and never pickle: a child taken over by a hostile model file can send the daemon values, not code.
To the child: config (once), work, cancel, embed, cancel_embed. From it: ready or refused (once), then vectors
and one step frame per engine step, which also goes out when nothing was computed but the state changed.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from tidegate.routing.domain import (
    AttemptKey,
    Cause,
    Failure,
    Finish,
    FinishReason,
    FirstToken,
    InputKind,
    OutputFormat,
    Sampling,
    SequenceOutput,
    TokenLogprob,
    Usage,
    Work,
)

MAX_FRAME_BYTES = 64 * 1024 * 1024
HEADER = struct.Struct(">I")

Frame = dict[str, Any]

# Made once: there is a frame per step. Frames are made of new values, which cannot hold themselves.
_to_json = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class ProtocolError(Exception):
    """The other side sent what is no frame."""


# What a frame that is not as agreed raises when it is read.
MALFORMED = (
    ProtocolError,
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    RecursionError,
)


@dataclass(frozen=True, slots=True)
class ChildConfig:
    """What the child is told at start; see LlamaCppSettings for the meaning.

    `known_speeds`, (prefill tokens/s, decode curve), is what an earlier child had measured: with it a new one
    serves sooner. `kept` is what was measured of this device and model: {"build", "curves", "measured_s"}.
    `adapters` are (name, path, scale), `pinned` prompts (text, tenants, adapter).
    `prefix_identity` names what the blocks in the prefix file depend on. Prompts that are not pinned
    `pin_within_s` after the start are pinned when there is nothing else to do.
    """

    model_path: str
    n_gpu_layers: int
    threads: int
    slots: int
    context_tokens: int
    n_batch: int
    prefill_chunk: int
    step_guard_ms: float
    kv_type: str
    chat_template: str
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    debug: bool
    known_speeds: tuple[float, Sequence[tuple[int, float]]] | None = None
    adapters: Sequence[tuple[str, str, float]] = ()
    pooling: str = "mean"
    embedding_tokens: int = 512
    memory_limit_bytes: int = 0
    flash: bool = False
    adapt_threads: bool = False
    tune_after_s: float = 0.0
    kept: Frame | None = None
    pinned: Sequence[tuple[str, Sequence[str], str]] = ()
    prefix_file: str = ""
    prefix_file_bytes: int = 0
    prefix_identity: str = ""
    pin_within_s: float = 60.0
    max_tpot_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class LoadState:
    """The child's load after a step. `seen` is the highest sequence number it has received and tokenised."""

    running: int = 0
    queued: int = 0
    pending_prefill_tokens: int = 0
    pending_decode_tokens: int = 0
    free_cache_tokens: int = 0
    seen: int = 0
    pinned_tokens: int = 0


def encode(frame: Frame) -> bytes:
    body = _to_json(frame).encode()
    if len(body) > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {len(body)} bytes is over the limit")
    return HEADER.pack(len(body)) + body


def decode(body: bytes) -> Frame:
    """Raises ProtocolError."""
    try:
        frame = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a frame is no JSON") from error
    if not isinstance(frame, dict) or not isinstance(frame.get("t"), str):
        raise ProtocolError("a frame has no type")
    return frame


def body_length(header: bytes) -> int:
    """Raises ProtocolError."""
    length: int = HEADER.unpack(header)[0]
    if length > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {length} bytes is over the limit")
    return length


def receive(sock: socket.socket) -> Frame | None:
    """The next frame; None when the other side is gone. Blocks. Raises ProtocolError."""
    header = _receive_exactly(sock, HEADER.size)
    if header is None:
        return None
    body = _receive_exactly(sock, body_length(header))
    return None if body is None else decode(body)


def _receive_exactly(sock: socket.socket, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        try:
            part = sock.recv(min(count - len(data), 1 << 20))
        except (ConnectionError, OSError):
            return None
        if not part:
            return None
        data += part
    return bytes(data)


def unpack_load(counts: Sequence[Any]) -> LoadState:
    """Raises like any bad frame for what is no count."""
    if not all(0 <= int(count) < 2**63 for count in counts):
        raise ValueError("a count is out of range")
    return LoadState(*map(int, counts))


def pack_work(sid: int, work: Work, text: str, waited_ms: float) -> Frame:
    """`text` is the decoded input; `waited_ms` passed since it was submitted, when its durations began."""
    return {
        "t": "work",
        "sid": sid,
        "request_id": work.key.request_id,
        "attempt_no": work.key.attempt_no,
        "tenant": work.tenant,
        "kind": work.input_kind.value,
        "text": text,
        "sampling": asdict(work.sampling),
        "max_tokens": work.max_tokens,
        "stop": list(work.stop),
        "prefix": [name.hex() for name in work.prefix_hashes],
        "remaining_ms": work.remaining_ms,
        "ttft_remaining_ms": work.ttft_remaining_ms,
        "priority": work.priority,
        "start_index": work.start_index,
        "replay": list(work.replay_token_ids),
        "adapter": work.adapter,
        "format": asdict(work.format),
        "top_logprobs": work.top_logprobs,
        "data_class": work.data_class,
        "waited_ms": waited_ms,
    }


def _unpack_sampling(frame: Frame) -> Sampling:
    return Sampling(**frame | {"logit_bias": tuple((token, bias) for token, bias in frame["logit_bias"])})


def unpack_work(frame: Frame) -> Work:
    return Work(
        key=AttemptKey(frame["request_id"], frame["attempt_no"]),
        tenant=frame["tenant"],
        variant_digest="",
        input_kind=InputKind(frame["kind"]),
        input=frame["text"].encode(),
        sampling=_unpack_sampling(frame["sampling"]),
        max_tokens=frame["max_tokens"],
        stop=tuple(frame["stop"]),
        prefix_hashes=tuple(bytes.fromhex(name) for name in frame["prefix"]),
        remaining_ms=frame["remaining_ms"],
        ttft_remaining_ms=frame["ttft_remaining_ms"],
        priority=frame["priority"],
        start_index=frame["start_index"],
        replay_token_ids=tuple(frame["replay"]),
        adapter=frame["adapter"],
        format=OutputFormat(**frame["format"]),
        top_logprobs=frame["top_logprobs"],
        data_class=frame["data_class"],
    )


class Emission(NamedTuple):
    """What one step gave one sequence, named by its number. A tuple, as it goes out: many are made."""

    sid: int
    first_index: int
    token_ids: tuple[int, ...] = ()
    text: str = ""
    first_token: FirstToken | None = None
    finish: Finish | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


def pack_emission(emission: Emission) -> Sequence[Any]:
    first, finish = emission.first_token, emission.finish
    if first is None and finish is None and not emission.logprobs:
        return emission[:6]
    packed: list[Any] = [
        emission.sid,
        emission.first_index,
        emission.token_ids,
        emission.text,
        first
        and [first.queue_ms, first.prefill_ms, first.cached_tokens, first.batch_size, first.prompt_tokens],
        finish and _pack_finish(finish),
    ]
    if emission.logprobs:
        packed.append([_pack_logprob(each) for each in emission.logprobs])
    return packed


def unpack_emission(item: list[Any], key: AttemptKey) -> SequenceOutput:
    _, first_index, token_ids, text, first, finish, *logprobs = item
    return SequenceOutput(
        key=key,
        first_index=first_index,
        count=len(token_ids),
        token_ids=tuple(token_ids),
        text=text,
        first_token=FirstToken(*first) if first else None,
        finish=_unpack_finish(finish) if finish else None,
        logprobs=tuple(_unpack_logprob(each) for each in logprobs[0]) if logprobs else (),
    )


def _pack_logprob(odds: TokenLogprob) -> list[Any]:
    top = [_pack_logprob(each) for each in odds.top]
    return [odds.token_id, odds.text.hex(), odds.logprob, top, odds.margin, odds.entropy]


def _unpack_logprob(item: list[Any]) -> TokenLogprob:
    token_id, text, logprob, top, margin, entropy = item
    likeliest = tuple(_unpack_logprob(each) for each in top)
    return TokenLogprob(int(token_id), bytes.fromhex(text), float(logprob), likeliest, margin, entropy)


def _pack_finish(finish: Finish) -> list[Any]:
    usage = [finish.usage.prompt_tokens, finish.usage.completion_tokens, finish.usage.cached_tokens]
    if isinstance(finish.result, Failure):
        return [usage, None, finish.result.cause.value, finish.result.detail]
    return [usage, finish.result.value, None, ""]


def _unpack_finish(item: list[Any]) -> Finish:
    usage, reason, cause, detail = item
    result = FinishReason(reason) if cause is None else Failure(Cause(cause), detail)
    return Finish(result, Usage(*usage))
