"""What a link needs from the node it stands in, and what it gives back.

Implemented by serving.node.NodeRuntime. All calls happen on one event loop and never block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tidegate.routing.domain import (
    Announcement,
    AttemptKey,
    CacheDelta,
    Failure,
    NodeLoad,
    SequenceOutput,
    Work,
)


class WorkRefused(Exception):
    """Work the node does not take; nothing was computed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.cause.value}: {failure.detail}")
        self.failure = failure


class NodeListener(Protocol):
    """One link (or the local API), as the node sees it."""

    def deliver(self, outputs: Sequence[SequenceOutput]) -> None:
        """All outputs of one engine step that belong to this listener."""
        ...

    def load_changed(self) -> None:
        """Running, queued, readiness or draining changed."""
        ...

    def cache_changed(self, delta: CacheDelta) -> None: ...


class NodeService(Protocol):
    """The node as its links see it."""

    def announcement(self) -> Announcement: ...

    def load(self) -> NodeLoad:
        """`last_work_seq` is the link's to fill in."""
        ...

    def cache_full(self) -> CacheDelta: ...

    def attach(self, listener: NodeListener) -> None: ...

    def detach(self, listener: NodeListener) -> None:
        """The listener is gone: its work ends after each work's own detach_grace_ms."""
        ...

    def submit(self, listener: NodeListener, work: Work) -> None:
        """Raises WorkRefused: OVERLOADED, DRAINING, FENCED, UNKNOWN_VARIANT, INVALID_INPUT."""
        ...

    def cancel(self, key: AttemptKey) -> None:
        """Frees the sequence before the next engine step; unknown keys are ignored."""
        ...

    def fence(self, key: AttemptKey) -> None:
        """Refuse attempts of this request below key.attempt_no from now on, and cancel running ones."""
        ...

    def drain(self) -> None:
        """Finish what runs, take no more."""
        ...
