"""Who a caller is: API keys to clients, for every front door."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gateway.dispatch.caller import Client
from serving.openai_api import Caller
from serving.security import TokenTable, bearer
from tidegate.routing.domain import Code, ServeError

ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True)
class ClientEntry:
    """One API key. `name` is unique and stands for the key inside the program."""

    name: str
    key: str
    client: Client


class ClientDirectory:
    """Without any key configured every caller is the anonymous administrator (loopback only, see startup)."""

    def __init__(self, entries: Iterable[ClientEntry] = ()) -> None:
        entries = tuple(entries)
        self._table: TokenTable[str] = TokenTable((e.key, e.name) for e in entries)
        self._by_name = {e.name: e.client for e in entries}
        if not entries:
            self._by_name[ANONYMOUS] = Client(is_admin=True)
        self.open = not entries

    def authenticate(self, authorization: str | None) -> str:
        """The name of the key's entry. Raises ServeError(UNAUTHENTICATED)."""
        if self.open:
            return ANONYMOUS
        name = self._table.lookup(bearer(authorization))
        if name is None:
            raise ServeError(
                Code.UNAUTHENTICATED,
                "API key missing or unknown: send `authorization: Bearer <key>`",
                reason="INVALID_API_KEY",
            )
        return name

    def client(self, name: str) -> Client:
        return self._by_name[name]

    def http_caller(self, authorization: str | None) -> Caller:
        """For the OpenAI front, whose `tenant` carries the entry's name to the backend."""
        name = self.authenticate(authorization)
        return Caller(tenant=name, is_admin=self._by_name[name].is_admin)
