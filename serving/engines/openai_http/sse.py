"""An incremental parser of server-sent events: bytes in as they come, whole events out."""

from __future__ import annotations

from dataclasses import dataclass

MAX_LINE_BYTES = 1 << 20


class SseError(Exception):
    """The stream is not server-sent events; the message carries none of its text."""


@dataclass(frozen=True, slots=True)
class SseEvent:
    """`name` is the event field ("" when absent), "error" too for servers that send an `error:` line."""

    data: str
    name: str = ""


class SseParser:
    """Lines end in LF, CR or CRLF, also when a read splits the CRLF; comments are dropped."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._after_cr = False
        self._data: list[str] = []
        self._name = ""
        self._size = 0

    def feed(self, data: bytes) -> list[SseEvent]:
        """The events that `data` completes. Raises SseError on bad UTF-8 or an endless event."""
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        self._rest += data
        if len(self._rest) > MAX_LINE_BYTES and b"\n" not in data and b"\r" not in data:
            raise SseError("a line of the stream is longer than 1 MiB")
        if b"\n" not in data and b"\r" not in data:
            return []
        lines = bytes(self._rest).splitlines(keepends=True)
        self._rest.clear()
        if not lines[-1].endswith((b"\n", b"\r")):
            self._rest += lines.pop()
        elif lines[-1].endswith(b"\r"):
            self._after_cr = True
        return [event for line in lines if (event := self._line(line.rstrip(b"\r\n"))) is not None]

    def _line(self, line: bytes) -> SseEvent | None:
        if not line:
            return self._dispatch()
        if line.startswith(b":"):
            return None
        try:
            name, _, value = line.decode("utf-8").partition(":")
        except UnicodeDecodeError:
            raise SseError("the stream is not UTF-8") from None
        value = value.removeprefix(" ")
        if name in ("data", "error"):
            self._data.append(value)
            self._size += len(value)
            if self._size > MAX_LINE_BYTES:
                raise SseError("an event of the stream is longer than 1 MiB")
        if name == "event":
            self._name = value
        elif name == "error":
            self._name = "error"
        return None

    def _dispatch(self) -> SseEvent | None:
        data, name = self._data, self._name
        self._data, self._name, self._size = [], "", 0
        return SseEvent("\n".join(data), name) if data else None
