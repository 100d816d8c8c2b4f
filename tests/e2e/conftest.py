"""One fleet of real processes with the oracle engine, shared; each test finds it whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from e2e_fleet import make_whole, running_fleet

from tidegate_cli.stack import LocalFleet


@pytest.fixture(scope="session")
def oracle_fleet() -> Iterator[LocalFleet]:
    with running_fleet("oracle", pacing=0.5) as fleet:
        yield fleet


@pytest.fixture
async def fleet(oracle_fleet: LocalFleet) -> LocalFleet:
    await make_whole(oracle_fleet)
    return oracle_fleet
