"""Who a node says it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class NodeIdentityLike(Protocol):
    """Who this node is: `node_id` lasts, `boot_id` is new for every process, `name` is for people."""

    @property
    def node_id(self) -> str: ...

    @property
    def boot_id(self) -> str: ...

    @property
    def name(self) -> str: ...


@dataclass(frozen=True, slots=True)
class NamedIdentity:
    """The plainest NodeIdentityLike."""

    node_id: str
    boot_id: str
    name: str
