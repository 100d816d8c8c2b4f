"""The status table and the details that travel with it."""

from __future__ import annotations

import base64
from urllib.parse import quote

import grpc
import pytest

from tidegate.routing.domain import Code, ServeError
from tidegate.wire import status

# Made with the public google.rpc types: Status(code=8, message="busy", details=[
# ErrorInfo(reason="QUEUE_FULL", domain="tidegate", metadata={"a": "b"}), RetryInfo(retry_delay=1.5 s)]).
GOLDEN = bytes.fromhex(
    "08081204627573791a4a0a28747970652e676f6f676c65617069732e636f6d2f676f6f676c652e72"
    "70632e4572726f72496e666f121e0a0a51554555455f46554c4c120874696465676174651a060a01"
    "611201621a360a28747970652e676f6f676c65617069732e636f6d2f676f6f676c652e7270632e52"
    "65747279496e666f120a0a0808011080cab5ee01"
)


@pytest.mark.parametrize("code", list(Code))
def test_every_code_survives(code: Code) -> None:
    assert status.from_grpc(status.to_grpc(code)) is code


@pytest.mark.parametrize("foreign", list(grpc.StatusCode))
def test_every_grpc_code_is_an_error_of_ours(foreign: grpc.StatusCode) -> None:
    error = status.to_serve_error(foreign, None, None)
    assert error.code in Code
    assert error.message


def test_unknown_is_internal() -> None:
    assert status.from_grpc(grpc.StatusCode.UNKNOWN) is Code.INTERNAL


def test_details_are_the_public_bytes() -> None:
    error = ServeError(
        Code.RESOURCE_EXHAUSTED, "busy", reason="QUEUE_FULL", retry_after_ms=1500, details={"a": "b"}
    )
    assert status.status_details(error) == GOLDEN
    assert status.parse_details(GOLDEN) == ("QUEUE_FULL", 1500.0, {"a": "b"})


def test_error_round_trip() -> None:
    sent = ServeError(
        Code.INVALID_ARGUMENT,
        "ttft",
        reason="R",
        param="budget.ttft_ms",
        details={"k": "ü"},
        retry_after_ms=0,
    )
    got = status.to_serve_error(
        status.to_grpc(sent.code), status.status_message(sent), status.trailing_metadata(sent)
    )
    assert (got.code, got.message, got.reason, got.param, got.details, got.retry_after_ms) == (
        sent.code,
        sent.message,
        sent.reason,
        sent.param,
        sent.details,
        0.0,
    )


@pytest.mark.parametrize("data", [b"", b"\xff\xff\xff", GOLDEN[:-3], b"\x1a\x02\x0a\x00"])
def test_unreadable_details_hide_nothing(data: bytes) -> None:
    error = status.to_serve_error(grpc.StatusCode.UNAVAILABLE, "gone", [(status.DETAILS_KEY, data)])
    assert (error.code, error.message, error.retry_after_ms) == (Code.UNAVAILABLE, "gone", None)


@pytest.mark.parametrize(("value", "expected"), [("250", 250.0), ("-1", None), ("soon", None), ("", None)])
def test_pushback_without_details(value: str, expected: float | None) -> None:
    error = status.to_serve_error(grpc.StatusCode.UNAVAILABLE, "x", [(status.PUSHBACK_KEY, value)])
    assert error.retry_after_ms == expected


def test_metadata_stays_far_below_the_limit_of_peers() -> None:
    error = ServeError(
        Code.INTERNAL,
        "é" * 10_000,
        reason="R" * 1_000,
        param="p" * 1_000,
        details={f"{n}" + "k" * 500: "ü" * 5_000 for n in range(50)},
    )
    size = len(base64.b64encode(status.status_details(error))) + len(quote(status.status_message(error)))
    assert size < 6_000
    reason, _, details = status.parse_details(status.status_details(error))
    assert reason.startswith("RRR")
    assert details["param"].startswith("ppp")


def test_a_message_with_lone_surrogates_still_travels() -> None:
    error = ServeError(Code.INTERNAL, "bad \ud800 text")
    assert "bad" in status.status_message(error)
    assert status.status_details(error)
