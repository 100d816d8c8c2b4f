"""Resume tokens: any replica can check them, nobody else can make them."""

from __future__ import annotations

import pytest

from gateway.dispatch.resume import ResumeTokens

SECRET = b"the secret of a fleet"


def test_any_replica_of_the_fleet_knows_its_own_tokens() -> None:
    token = ResumeTokens(SECRET).issue("shop", "r1", "nonce")
    assert ResumeTokens(SECRET).belongs(token, "shop", "r1")


@pytest.mark.parametrize(
    ("tenant", "request_id", "secret"),
    [("other", "r1", SECRET), ("shop", "r2", SECRET), ("shop", "r1", b"the secret of another")],
)
def test_a_token_is_bound_to_tenant_request_and_fleet(tenant: str, request_id: str, secret: bytes) -> None:
    token = ResumeTokens(SECRET).issue("shop", "r1", "nonce")
    assert not ResumeTokens(secret).belongs(token, tenant, request_id)


@pytest.mark.parametrize("token", ["", ".", "nonce", "nonce.", "nonce.00", "ü.é", "nonce." + "0" * 32])
def test_made_up_tokens_belong_to_nobody(token: str) -> None:
    assert not ResumeTokens(SECRET).belongs(token, "shop", "r1")
