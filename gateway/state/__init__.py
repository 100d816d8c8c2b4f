"""What a gateway replica knows: the fleet, sessions, and the store replicas share."""

from gateway.state.operator import OperatorTable, UnknownNode
from gateway.state.records import NodeRecord, SessionRecord
from gateway.state.sessions import Sessions
from gateway.state.store import Store, StoreError
from tidegate.routing.fleet import Fleet

__all__ = [
    "Fleet",
    "NodeRecord",
    "OperatorTable",
    "SessionRecord",
    "Sessions",
    "Store",
    "StoreError",
    "UnknownNode",
]
