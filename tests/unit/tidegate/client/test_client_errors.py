"""Every status becomes its exception, with details and cause; gRPC's errors never escape."""

from __future__ import annotations

import grpc
import pytest

import tidegate
from tidegate.routing.domain import Code, ServeError
from tidegate.testing import Fail, FakeGateway, Step, answer

ONE_TRY = tidegate.RetryPolicy(attempts=1)

TABLE = [
    (grpc.StatusCode.INVALID_ARGUMENT, tidegate.InvalidRequest),
    (grpc.StatusCode.ALREADY_EXISTS, tidegate.InvalidRequest),
    (grpc.StatusCode.OUT_OF_RANGE, tidegate.InvalidRequest),
    (grpc.StatusCode.UNAUTHENTICATED, tidegate.Unauthenticated),
    (grpc.StatusCode.PERMISSION_DENIED, tidegate.PermissionDenied),
    (grpc.StatusCode.NOT_FOUND, tidegate.ModelNotFound),
    (grpc.StatusCode.FAILED_PRECONDITION, tidegate.NotPermitted),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, tidegate.Overloaded),
    (grpc.StatusCode.UNAVAILABLE, tidegate.Unavailable),
    (grpc.StatusCode.ABORTED, tidegate.Unavailable),
    (grpc.StatusCode.DEADLINE_EXCEEDED, tidegate.DeadlineExceeded),
    (grpc.StatusCode.CANCELLED, tidegate.Cancelled),
    (grpc.StatusCode.UNIMPLEMENTED, tidegate.Unimplemented),
    (grpc.StatusCode.INTERNAL, tidegate.InternalError),
    (grpc.StatusCode.UNKNOWN, tidegate.InternalError),
    (grpc.StatusCode.DATA_LOSS, tidegate.InternalError),
]


def test_the_table_is_complete() -> None:
    assert {status for status, _ in TABLE} == set(grpc.StatusCode) - {grpc.StatusCode.OK}


@pytest.mark.parametrize(("status", "kind"), TABLE, ids=[s.name for s, _ in TABLE])
async def test_status_to_exception(
    gateway: FakeGateway, status: grpc.StatusCode, kind: type[tidegate.TidegateError]
) -> None:
    async with tidegate.Client(gateway.address, retry=ONE_TRY) as client:
        gateway.fail_next(Fail(status, "on purpose"), Fail(status, "on purpose"))
        with pytest.raises(tidegate.TidegateError) as streaming:
            await client.complete("hi")
        with pytest.raises(tidegate.TidegateError) as single:
            await client.nodes()
    for caught in (streaming, single):
        assert type(caught.value) is kind
        assert caught.value.message == "on purpose"
        assert isinstance(caught.value.__cause__, grpc.RpcError)


async def test_details_arrive(gateway: FakeGateway, client: tidegate.Client) -> None:
    gateway.fail_next(
        Fail(
            ServeError(
                Code.RESOURCE_EXHAUSTED,
                "no node meets 5 ms",
                reason="BUDGET_UNMEETABLE",
                retry_after_ms=1234.5,
                param="budget.ttft_ms",
                details={"best_ms": "80"},
            )
        )
    )
    with pytest.raises(tidegate.BudgetUnmeetable) as caught:
        await client.complete("hi")
    error = caught.value
    assert (error.reason, error.retry_after_ms, error.param) == (
        "BUDGET_UNMEETABLE",
        1234.5,
        "budget.ttft_ms",
    )
    assert error.details == {"best_ms": "80"}
    assert gateway.calls == 1


async def test_an_error_after_the_first_token_keeps_what_came(
    gateway: FakeGateway, client: tidegate.Client
) -> None:
    gateway.script(*answer("half", finish=False), Fail.unavailable("NODE_LOST"))
    stream = client.generate("hi")
    with pytest.raises(tidegate.Unavailable) as caught:
        async for _ in stream:
            pass
    assert caught.value.reason == "NODE_LOST"
    assert stream.text == "half"
    assert gateway.calls == 1


async def test_api_key_and_its_absence() -> None:
    async with FakeGateway(api_key="k-1") as gateway:
        async with tidegate.Client(gateway.address, api_key="k-1") as client:
            assert (await client.complete("a b")).text == "ab"
        for key in (None, "wrong"):
            async with tidegate.Client(gateway.address, api_key=key) as client:
                with pytest.raises(tidegate.Unauthenticated):
                    await client.nodes()


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_cannot_travel_is_not_shown(key: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII") as caught:
        tidegate.Client("localhost:1", api_key=key)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (answer("a", finish=False), "STREAM_TRUNCATED"),
        ((), "STREAM_TRUNCATED"),
        ((*answer("a", finish=False), *answer("c", first_index=2, accept=False)), "STREAM_GAP"),
        ((*answer("a", finish=False), *answer("a", accept=False)), "STREAM_GAP"),
    ],
    ids=["no-finish", "empty", "missing", "doubled"],
)
async def test_answers_that_break_the_protocol(
    gateway: FakeGateway, client: tidegate.Client, steps: tuple[Step, ...], reason: str
) -> None:
    gateway.script(*steps)
    with pytest.raises(tidegate.InternalError) as caught:
        await client.complete("hi")
    assert caught.value.reason == reason
