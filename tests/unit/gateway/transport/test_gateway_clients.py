"""Who a caller is, and who may see the fleet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from gateway.dispatch.caller import Client
from gateway.state import Fleet
from gateway.transport.client_server import GatewayServicer
from gateway.transport.clients import ANONYMOUS, ClientDirectory, ClientEntry
from tidegate.gateway.v1 import gateway_pb2 as pb
from tidegate.routing.domain import Code, ServeError

APP = ClientEntry("app", "key-app", Client(tenant="acme", class_floor="internal"))
OPS = ClientEntry("ops", "key-ops", Client(tenant="ops", is_admin=True))
KEYS = ClientDirectory([APP, OPS])


def test_without_keys_everybody_is_the_anonymous_administrator() -> None:
    door = ClientDirectory()
    for header in (None, "", "Bearer whatever"):
        assert door.authenticate(header) == ANONYMOUS
    assert door.client(ANONYMOUS).is_admin


@pytest.mark.parametrize("header", ["Bearer key-app", "bearer key-app", "Bearer  key-app "])
def test_a_key_names_its_client(header: str) -> None:
    name = KEYS.authenticate(header)
    assert (name, KEYS.client(name)) == ("app", APP.client)
    caller = KEYS.http_caller(header)
    assert (caller.tenant, caller.is_admin) == ("app", False)


@pytest.mark.parametrize(
    "header", [None, "", "key-app", "Basic key-app", "Bearer ", "Bearer key-ap", "Bearer KEY-APP"]
)
def test_anything_else_is_unauthenticated_and_not_repeated(header: str | None) -> None:
    with pytest.raises(ServeError) as caught:
        KEYS.authenticate(header)
    assert (caught.value.code, caught.value.reason) == (Code.UNAUTHENTICATED, "INVALID_API_KEY")
    assert "key-ap" not in caught.value.message


def test_two_clients_cannot_share_a_key() -> None:
    with pytest.raises(ValueError, match="twice"):
        ClientDirectory([APP, ClientEntry("other", "key-app", Client())])


@dataclass
class Context:
    """What a servicer asks of an RPC."""

    caller: str
    key: str = ""

    def peer(self) -> str:
        return self.caller

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.key}"),) if self.key else ()


REMOTE, LOCAL = "ipv4:192.0.2.7:40000", "ipv4:127.0.0.1:40000"


def servicer(clients: ClientDirectory) -> GatewayServicer:
    dispatcher: Any = None  # not reached by what is called here
    return GatewayServicer(dispatcher, Fleet(lambda: 0.0), clients)


@pytest.mark.parametrize(
    ("peer", "key"), [(REMOTE, "key-ops"), (LOCAL, "key-app"), ("ipv6:[::1]:4", "key-app")]
)
async def test_the_admin_scope_or_loopback_may_see_the_fleet(peer: str, key: str) -> None:
    answer = await servicer(KEYS).ListNodes(pb.ListNodesRequest(), Context(peer, key))
    assert list(answer.nodes) == []


async def test_reasons_with_an_answer_are_the_administrators_too() -> None:
    with pytest.raises(ServeError) as caught:
        await servicer(KEYS).Generate(pb.GenerateRequest(explain=True), Context(REMOTE, "key-app"))
    assert caught.value.code is Code.PERMISSION_DENIED


@pytest.mark.parametrize("method", ["ListNodes", "WatchFleet", "Explain"])
async def test_others_may_not(method: str) -> None:
    with pytest.raises(ServeError) as caught:
        await getattr(servicer(KEYS), method)(None, Context(REMOTE, "key-app"))
    assert caught.value.code is Code.PERMISSION_DENIED


@pytest.mark.parametrize(
    "method", ["Generate", "Resume", "Route", "ListModels", "ListNodes", "WatchFleet", "Explain"]
)
@pytest.mark.parametrize("peer", [REMOTE, LOCAL])
async def test_where_keys_exist_every_method_wants_one(method: str, peer: str) -> None:
    with pytest.raises(ServeError) as caught:
        await getattr(servicer(KEYS), method)(pb.GenerateRequest(), Context(peer))
    assert caught.value.code is Code.UNAUTHENTICATED


async def test_any_key_may_list_models() -> None:
    answer = await servicer(KEYS).ListModels(pb.ListModelsRequest(), Context(REMOTE, "key-app"))
    assert list(answer.models) == []
