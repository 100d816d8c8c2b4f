"""The order in which work goes down a link, and how much of a large input is on the way at once."""

from __future__ import annotations

import asyncio

import pytest
from gateway_fakes import work

from gateway.upstream.commands import CreditCommand, DataCommand, FragmentCommand, WorkCommand
from gateway.upstream.fragments import FRAGMENT_BYTES, WINDOW_BYTES, WorkQueue
from tidegate.routing.domain import AttemptKey

KIB = 1024


def waiting(queue: WorkQueue) -> list[DataCommand]:
    """All commands that may go now."""
    commands = []
    while (command := queue._pop()) is not None:
        commands.append(command)
    return commands


def test_credits_go_first_then_heads_then_rests_turn_by_turn() -> None:
    queue = WorkQueue()
    queue.put(work("big", data=b"b" * (3 * FRAGMENT_BYTES)))
    queue.put(work("other", data=b"o" * (2 * FRAGMENT_BYTES)))
    queue.put(work("small", data=b"s"))
    queue.grant(AttemptKey("running", 1), 16)
    got = [
        (type(c).__name__, (c.work.key if isinstance(c, WorkCommand) else c.key).request_id)
        for c in waiting(queue)
    ]
    assert got == [
        ("CreditCommand", "running"),
        ("WorkCommand", "big"),
        ("WorkCommand", "other"),
        ("WorkCommand", "small"),
        ("FragmentCommand", "big"),
        ("FragmentCommand", "other"),
    ]


def test_an_input_arrives_whole_and_in_order() -> None:
    data = bytes(i % 251 for i in range(100 * KIB + 7))
    queue = WorkQueue()
    queue.put(work("a", data=data))
    received = b""
    while len(received) < len(data):
        (*commands,) = waiting(queue)
        assert commands, "the window never opened again"
        for command in commands:
            if isinstance(command, WorkCommand):
                received += command.first_fragment
            elif isinstance(command, FragmentCommand):
                assert len(command.data) <= FRAGMENT_BYTES
                received += command.data
                queue.acked(len(command.data))
    assert received == data
    assert waiting(queue) == []


def test_at_most_a_window_of_rests_is_unacknowledged_and_heads_still_pass() -> None:
    queue = WorkQueue()
    queue.put(work("big", data=b"x" * (1024 * KIB)))
    sent = sum(len(c.data) for c in waiting(queue) if isinstance(c, FragmentCommand))
    assert sent == WINDOW_BYTES
    queue.put(work("small", data=b"y"))
    queue.grant(AttemptKey("other", 1), 1)
    assert [type(c) for c in waiting(queue)] == [CreditCommand, WorkCommand]
    queue.acked(FRAGMENT_BYTES)
    assert [type(c) for c in waiting(queue)] == [FragmentCommand]


def test_credits_of_one_request_travel_together() -> None:
    queue = WorkQueue()
    for _ in range(3):
        queue.grant(AttemptKey("a", 1), 16)
    assert waiting(queue) == [CreditCommand(AttemptKey("a", 1), 48)]


def test_dropping_unsent_work_leaves_nothing_behind() -> None:
    queue = WorkQueue()
    queue.put(work("a", data=b"x" * (64 * KIB)))
    queue.grant(AttemptKey("a", 1), 4)
    assert queue.drop(AttemptKey("a", 1))
    assert waiting(queue) == []


def test_dropping_half_sent_work_stops_its_rest_only() -> None:
    queue = WorkQueue()
    queue.put(work("a", data=b"x" * (64 * KIB)))
    queue.put(work("b", data=b"y" * (64 * KIB)))
    assert isinstance(queue._pop(), WorkCommand)
    assert not queue.drop(AttemptKey("a", 1))
    assert {(c.work.key if isinstance(c, WorkCommand) else c.key).request_id for c in waiting(queue)} == {"b"}


@pytest.mark.looptime
async def test_next_waits_for_work_and_for_the_window() -> None:
    queue = WorkQueue()
    loop = asyncio.get_running_loop()
    loop.call_later(1.0, queue.put, work("a", data=b"x" * (64 * KIB)))
    loop.call_later(2.0, queue.acked, FRAGMENT_BYTES)
    assert isinstance(await queue.next(), WorkCommand)
    assert loop.time() == 1.0
    await queue.next()
    await queue.next()
    assert isinstance(await queue.next(), FragmentCommand)
    assert loop.time() == 2.0
