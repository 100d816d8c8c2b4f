from __future__ import annotations

import pytest

from serving.engines.openai_http.sse import MAX_LINE_BYTES, SseError, SseEvent, SseParser

STREAM = (
    "data: one\n\n: a comment\n\ndata:two\r\n\r\nevent: error\rdata: three\r\rid: 7\nretry: 5\n"
    'data: fo\ndata: ur\n\nerror: {"code": 500}\n\ndata: żółć 🌊\n\ndata\n\n'
).encode()
EVENTS = [
    SseEvent("one"),
    SseEvent("two"),
    SseEvent("three", "error"),
    SseEvent("fo\nur"),
    SseEvent('{"code": 500}', "error"),
    SseEvent("żółć 🌊"),
    SseEvent(""),
]


def test_whole_stream_at_once() -> None:
    assert SseParser().feed(STREAM) == EVENTS


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_reads_of_any_size_give_the_same_events(size: int) -> None:
    parser = SseParser()
    events = [
        event for start in range(0, len(STREAM), size) for event in parser.feed(STREAM[start : start + size])
    ]
    assert events == EVENTS


def test_every_split_in_two_gives_the_same_events() -> None:
    for cut in range(len(STREAM) + 1):
        parser = SseParser()
        assert parser.feed(STREAM[:cut]) + parser.feed(STREAM[cut:]) == EVENTS


def test_an_event_comes_with_its_blank_line_and_not_before() -> None:
    parser = SseParser()
    assert parser.feed(b"data: x\n") == []
    assert parser.feed(b"\n") == [SseEvent("x")]


def test_bad_utf8_is_an_error_without_its_text() -> None:
    with pytest.raises(SseError) as error:
        SseParser().feed(b"data: secret \xff\n\n")
    assert "secret" not in str(error.value)


def test_an_endless_line_is_an_error() -> None:
    parser = SseParser()
    parser.feed(b"data: " + b"x" * (MAX_LINE_BYTES - 10))
    with pytest.raises(SseError):
        parser.feed(b"x" * 20)


def test_an_endless_event_is_an_error() -> None:
    parser = SseParser()
    line = b"data: " + b"x" * (MAX_LINE_BYTES // 2) + b"\n"
    assert parser.feed(line) == []
    with pytest.raises(SseError):
        parser.feed(line + line)
