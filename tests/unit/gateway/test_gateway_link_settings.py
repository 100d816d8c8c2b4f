"""Times of the node links that contradict each other are refused at start."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gateway.settings import LinkSettings


def test_defaults_suspect_a_node_after_two_missed_heartbeats() -> None:
    assert LinkSettings().suspect_after_s == 4.5
    assert LinkSettings(heartbeat_s=10.0, lost_after_s=30.0).suspect_after_s == 22.5


def test_a_link_cannot_be_lost_before_its_node_is_suspect() -> None:
    with pytest.raises(ValidationError, match=r"lost_after_s must be above 2\.25 heartbeats, 11\.25 s"):
        LinkSettings(heartbeat_s=5.0)
