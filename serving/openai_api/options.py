"""Limits of the HTTP front, one value for the routes and for the runner under them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FrontOptions:
    """Bounds that keep one client from holding the front. Seconds and bytes.

    `body_timeout_s`: a request's body must be complete within it (408). `write_stall_s`: a reader that takes
    nothing for that long is cut and its generation cancelled. `keepalive_s` also bounds how long a client may
    take for its request head. `shutdown_s`: running answers may finish that long once the runner's cleanup
    began, then they end with an error; a drain that wants to tell clients earlier belongs before the cleanup.
    """

    max_body_bytes: int = 8 * 1024 * 1024
    body_timeout_s: float = 60.0
    write_stall_s: float = 30.0
    keepalive_s: float = 75.0
    linger_s: float = 2.0
    shutdown_s: float = 2.0


DEFAULT_OPTIONS = FrontOptions()
