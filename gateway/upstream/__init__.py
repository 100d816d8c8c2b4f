"""The gateway's side of the node links, without protobuf: sessions, attempts' streams, fragments."""

from gateway.upstream.registry import LinkRegistry, NotLinked
from gateway.upstream.session import NodeSession
from gateway.upstream.stream import AttemptStream

__all__ = ["AttemptStream", "LinkRegistry", "NodeSession", "NotLinked"]
