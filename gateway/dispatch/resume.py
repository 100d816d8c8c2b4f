"""Tokens that will let a client go on with its stream: unguessable, and bound to tenant and request."""

from __future__ import annotations

import hashlib
import hmac

TAG_BYTES = 16


class ResumeTokens:
    """`secret` is the fleet's, so that any replica can check what another one issued."""

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.new(secret, b"resume", hashlib.sha256).digest()

    def issue(self, tenant: str, request_id: str, nonce: str) -> str:
        """`nonce` is random and holds no dot."""
        return f"{nonce}.{self._tag(tenant, request_id, nonce)}"

    def belongs(self, token: str, tenant: str, request_id: str) -> bool:
        """True when this token was issued for this tenant's request. Takes the same time either way."""
        nonce, _, tag = token.partition(".")
        return hmac.compare_digest(tag.encode(), self._tag(tenant, request_id, nonce).encode())

    def _tag(self, tenant: str, request_id: str, nonce: str) -> str:
        said = "\0".join((tenant, request_id, nonce)).encode()
        return hmac.new(self._key, said, hashlib.sha256).hexdigest()[: 2 * TAG_BYTES]
