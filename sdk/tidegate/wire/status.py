"""The one table between the domain's error codes and gRPC's, with google.rpc.Status details.

An error travels as status code and message, with a google.rpc.Status in `grpc-status-details-bin` that holds
an ErrorInfo (reason, domain "tidegate", metadata) and, where trying again makes sense, a RetryInfo. The bytes
are those of the public google.rpc types; they are described here in a descriptor pool of our own, so that the
SDK needs no further package and clashes with none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import grpc
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, duration_pb2, message_factory
from google.protobuf.message import DecodeError

from tidegate.routing.domain import Code, ServeError

DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
DOMAIN = "tidegate"

# gRPC peers refuse metadata above 8 KiB at random, and the message travels twice (percent-encoded in the
# status, base64 in the details): bounded here, in bytes of UTF-8.
MAX_MESSAGE_BYTES = 500
MAX_VALUE_BYTES = 200
MAX_KEY_BYTES = 60
MAX_DETAILS = 8

_PARAM = "param"

_TO_GRPC: Mapping[Code, grpc.StatusCode] = {code: grpc.StatusCode[code.name] for code in Code}
_FROM_GRPC: Mapping[grpc.StatusCode, Code] = {
    **{status: code for code, status in _TO_GRPC.items()},
    # Codes that Tidegate never sends but gRPC itself, a proxy or another server may.
    grpc.StatusCode.UNKNOWN: Code.INTERNAL,
    grpc.StatusCode.DATA_LOSS: Code.INTERNAL,
    grpc.StatusCode.OUT_OF_RANGE: Code.INVALID_ARGUMENT,
    grpc.StatusCode.ABORTED: Code.UNAVAILABLE,
}

Metadata = Iterable[tuple[str, str | bytes]]


def to_grpc(code: Code) -> grpc.StatusCode:
    return _TO_GRPC[code]


def from_grpc(status: grpc.StatusCode) -> Code:
    """INTERNAL for what no table knows."""
    return _FROM_GRPC.get(status, Code.INTERNAL)


def _add_field(
    message: descriptor_pb2.DescriptorProto, name: str, number: int, kind: int, *, repeated: bool = False,
    type_name: str = "",
) -> None:  # fmt: skip
    field = message.field.add(name=name, number=number)
    if type_name:
        field.type_name = type_name
    field.type = kind  # type: ignore[assignment]
    types = descriptor_pb2.FieldDescriptorProto
    field.label = types.LABEL_REPEATED if repeated else types.LABEL_OPTIONAL


def _describe() -> descriptor_pb2.FileDescriptorProto:
    """google.rpc.Status, RetryInfo and ErrorInfo as their public definitions number them."""
    types = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="tidegate_google_rpc.proto",
        package="google.rpc",
        syntax="proto3",
        dependency=[any_pb2.DESCRIPTOR.name, duration_pb2.DESCRIPTOR.name],
    )
    status = file.message_type.add(name="Status")
    _add_field(status, "code", 1, types.TYPE_INT32)
    _add_field(status, "message", 2, types.TYPE_STRING)
    _add_field(status, "details", 3, types.TYPE_MESSAGE, repeated=True, type_name=".google.protobuf.Any")
    retry = file.message_type.add(name="RetryInfo")
    _add_field(retry, "retry_delay", 1, types.TYPE_MESSAGE, type_name=".google.protobuf.Duration")
    info = file.message_type.add(name="ErrorInfo")
    _add_field(info, "reason", 1, types.TYPE_STRING)
    _add_field(info, "domain", 2, types.TYPE_STRING)
    entry = info.nested_type.add(name="MetadataEntry")
    entry.options.map_entry = True
    _add_field(entry, "key", 1, types.TYPE_STRING)
    _add_field(entry, "value", 2, types.TYPE_STRING)
    _add_field(
        info, "metadata", 3, types.TYPE_MESSAGE, repeated=True,
        type_name=".google.rpc.ErrorInfo.MetadataEntry",
    )  # fmt: skip
    return file


def _classes() -> tuple[Any, Any, Any]:
    pool = descriptor_pool.DescriptorPool()
    for known in (any_pb2.DESCRIPTOR, duration_pb2.DESCRIPTOR):
        pool.AddSerializedFile(known.serialized_pb)
    pool.AddSerializedFile(_describe().SerializeToString())
    names = ("Status", "RetryInfo", "ErrorInfo")
    status, retry, info = (
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"google.rpc.{name}")) for name in names
    )
    return status, retry, info


_Status, _RetryInfo, _ErrorInfo = _classes()


def status_details(error: ServeError) -> bytes:
    """Serialized google.rpc.Status of this error; `param` travels in ErrorInfo.metadata."""
    number, _ = to_grpc(error.code).value
    status = _Status(code=number, message=_clip(error.message, MAX_MESSAGE_BYTES))
    metadata = {
        _clip(k, MAX_KEY_BYTES): _clip(v, MAX_VALUE_BYTES)
        for k, v in list(error.details.items())[:MAX_DETAILS]
    }
    if error.param:
        metadata[_PARAM] = _clip(error.param, MAX_VALUE_BYTES)
    info = _ErrorInfo(reason=_clip(error.reason, MAX_KEY_BYTES), domain=DOMAIN, metadata=metadata)
    status.details.add().Pack(info)
    if error.retry_after_ms is not None:
        retry = _RetryInfo()
        retry.retry_delay.FromMicroseconds(round(max(0.0, error.retry_after_ms) * 1_000))
        status.details.add().Pack(retry)
    return bytes(status.SerializeToString())


def parse_details(data: bytes) -> tuple[str, float | None, dict[str, str]]:
    """(reason, retry_after_ms, metadata) of a serialized google.rpc.Status.

    What is missing or not to be read gives "", None and {}: an error must not hide behind its details.
    """
    reason, retry_after_ms, metadata = "", None, {}
    try:
        status = _Status.FromString(data)
        for detail in status.details:
            if detail.Is(_ErrorInfo.DESCRIPTOR):
                info = _ErrorInfo.FromString(detail.value)
                reason, metadata = str(info.reason), dict(info.metadata)
            elif detail.Is(_RetryInfo.DESCRIPTOR):
                retry = _RetryInfo.FromString(detail.value)
                retry_after_ms = float(retry.retry_delay.ToMicroseconds()) / 1_000
    except DecodeError:
        return "", None, {}
    return reason, retry_after_ms, metadata


def trailing_metadata(error: ServeError) -> tuple[tuple[str, str | bytes], ...]:
    """What a server sends beside code and message."""
    pairs: list[tuple[str, str | bytes]] = [(DETAILS_KEY, status_details(error))]
    if error.retry_after_ms is not None:
        pairs.append((PUSHBACK_KEY, str(round(max(0.0, error.retry_after_ms)))))
    return tuple(pairs)


def status_message(error: ServeError) -> str:
    """The message as it travels in the status: bounded, since it is metadata too."""
    return _clip(error.message, MAX_MESSAGE_BYTES)


def to_serve_error(
    code: grpc.StatusCode, message: str | None, trailing_metadata: Metadata | None = None
) -> ServeError:
    """The domain's error of a finished RPC. A pushback counts where no RetryInfo was sent."""
    reason, retry_after_ms, pushback_ms = "", None, None
    details: dict[str, str] = {}
    for key, value in trailing_metadata or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            reason, retry_after_ms, details = parse_details(value)
        elif key == PUSHBACK_KEY:
            pushback_ms = _pushback_ms(value)
    domain_code = from_grpc(code)
    param = details.pop(_PARAM, "")
    return ServeError(
        domain_code,
        message or domain_code.value.replace("_", " "),
        reason=reason,
        retry_after_ms=pushback_ms if retry_after_ms is None else retry_after_ms,
        param=param,
        details=details,
    )


def _pushback_ms(value: str | bytes) -> float | None:
    """A negative or unreadable pushback means "do not retry", which is None here."""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    return float(text) if text.isascii() and text.isdigit() else None


def _clip(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8, no character cut; what cannot be encoded becomes "?"."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode("utf-8")
    return data[: limit - 3].decode("utf-8", "ignore") + "…"
