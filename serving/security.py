"""Tokens: compared in constant time, kept only as hashes, never shown."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


class TokenTable(Generic[T]):
    """What each token stands for. A lookup compares with every entry, so its time tells nothing."""

    __slots__ = ("_entries",)

    def __init__(self, tokens: Mapping[str, T] | Iterable[tuple[str, T]] = ()) -> None:
        """Raises ValueError on an empty token or one that is listed twice."""
        pairs = tokens.items() if isinstance(tokens, Mapping) else tokens
        entries: dict[bytes, T] = {}
        for token, value in pairs:
            digest = _digest(token)
            if not token:
                raise ValueError("a token is empty")
            if digest in entries:
                raise ValueError("a token is listed twice")
            entries[digest] = value
        self._entries = tuple(entries.items())

    def lookup(self, token: str | None) -> T | None:
        """The value of `token`; None when it is unknown."""
        digest = _digest(token or "")
        found: T | None = None
        for known, value in self._entries:
            if hmac.compare_digest(known, digest):
                found = value
        return found

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"TokenTable({len(self._entries)} tokens)"


def bearer(authorization: str | None) -> str | None:
    """The token of an `Authorization: Bearer TOKEN` header's value; None when it is something else."""
    if authorization is None:
        return None
    scheme, _, token = authorization.strip().partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and token else None
