"""Which nodes are linked to this replica now."""

from __future__ import annotations

from gateway.upstream.session import NodeSession
from gateway.upstream.stream import AttemptStream
from tidegate.routing.domain import Work


class NotLinked(LookupError):
    """No link to this node here."""


class LinkRegistry:
    """The one owner of node sessions; a newer link epoch replaces an older session."""

    def __init__(self) -> None:
        self._sessions: dict[str, NodeSession] = {}

    def add(self, session: NodeSession) -> bool:
        """False when a link with the same or a higher epoch is there already.

        Who proved that the id is his own gives way to nobody who did not, and nobody to him.
        """
        old = self._sessions.get(session.node_id)
        if old is not None:
            is_newer = session.link_epoch > old.link_epoch
            if not (is_newer if old.is_proven is session.is_proven else session.is_proven):
                return False
            old.close("replaced by a newer link of the same node")
        self._sessions[session.node_id] = session
        return True

    def remove(self, session: NodeSession, detail: str) -> bool:
        """Closes the session; True when it was the node's current one."""
        session.close(detail)
        if self._sessions.get(session.node_id) is session:
            del self._sessions[session.node_id]
            return True
        return False

    def get(self, node_id: str) -> NodeSession | None:
        return self._sessions.get(node_id)

    def sessions(self) -> tuple[NodeSession, ...]:
        return tuple(self._sessions.values())

    def open(self, node_id: str, work: Work) -> AttemptStream:
        """Starts an attempt on a linked node. Raises NotLinked."""
        session = self._sessions.get(node_id)
        if session is None:
            raise NotLinked(node_id)
        return session.open(work)
