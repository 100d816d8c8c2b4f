"""Who a request comes from, as far as dispatch cares."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Client:
    """`class_floor` is the least data class of all this client's requests, `key` the name of its API key."""

    tenant: str = "default"
    class_floor: str = ""
    is_admin: bool = False
    key: str = ""
