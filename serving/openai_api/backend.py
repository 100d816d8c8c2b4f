"""The one seam under the OpenAI HTTP front: whoever can generate and list models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tidegate.routing.domain import GenerateEvent, GenerateRequest


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as far as a front door could tell."""

    tenant: str = "default"
    is_admin: bool = False


@dataclass(frozen=True, slots=True)
class ModelCard:
    name: str
    aliases: tuple[str, ...] = ()
    context_tokens: int = 0
    owned_by: str = "tidegate"


class GenerateBackend(Protocol):
    """What the OpenAI front needs. Implemented by the gateway's dispatch and the edge daemon's runtime."""

    def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        """Streams Accepted, Chunks and one Finished; raises ServeError. Closing the iterator cancels."""
        ...

    def models(self, tenant: str) -> Sequence[ModelCard]:
        """What this tenant may ask for now."""
        ...


class Authenticator(Protocol):
    """Turns an Authorization header's value (or None) into a Caller; raises ServeError(UNAUTHENTICATED)."""

    def __call__(self, authorization: str | None) -> Caller: ...
