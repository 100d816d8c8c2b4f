"""What a server's process may do, as its parent says it on the command line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Seal:
    """`exposed_fd` is told why nothing is refused; `helpers` allows programs and local connections."""

    parent_pid: int
    exposed_fd: int
    memory_limit_bytes: int = 0
    helpers: bool = False

    def argument(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of_argument(cls, argument: str) -> Seal:
        return cls(**json.loads(argument))
