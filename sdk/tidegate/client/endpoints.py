"""Which gateway a call goes to, and what a client may not do with its channels."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tidegate.client.retry import Uniform

# gRPC's own backoff per address, in milliseconds: short, for a gateway that is back must be found soon.
RECONNECT_BACKOFF_MS = 1_000


class Endpoints:
    """The addresses of equal gateways. A client starts at a random one and stays until it fails."""

    def __init__(self, addresses: str | Sequence[str], uniform: Uniform) -> None:
        self.addresses: tuple[str, ...] = (
            (addresses,) if isinstance(addresses, str) else tuple(dict.fromkeys(addresses))
        )
        if not self.addresses or not all(isinstance(a, str) and a.strip() for a in self.addresses):
            raise ValueError("at least one address is needed, and none may be empty")
        self._current = min(int(uniform() * len(self.addresses)), len(self.addresses) - 1)

    @property
    def current(self) -> str:
        return self.addresses[self._current]

    def failed(self, address: str) -> None:
        """Moves on, unless another call has already done so."""
        if address == self.current:
            self._current = (self._current + 1) % len(self.addresses)


class ForkGuard:
    """gRPC does not survive a fork: a client belongs to the process that used it first."""

    def __init__(self) -> None:
        self._pid: int | None = None

    def check(self) -> None:
        """Raises RuntimeError in a forked child."""
        pid = os.getpid()
        if self._pid is None:
            self._pid = pid
        elif self._pid != pid:
            raise RuntimeError("this client was used before fork(); create a new one in the child process")


def call_metadata(api_key: str | None) -> tuple[tuple[str, str], ...]:
    """Raises ValueError for a key that cannot travel, without showing it."""
    if api_key is None:
        return ()
    if not api_key or not all(33 <= ord(c) <= 126 for c in api_key):
        raise ValueError("api_key must be printable ASCII without spaces")
    return (("authorization", f"Bearer {api_key}"),)
