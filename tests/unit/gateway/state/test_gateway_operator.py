"""The operator's table: his word on a node wins over the node's own and over its token's."""

from __future__ import annotations

import pytest
from gateway_fakes import CLOUD, EDGE

from gateway.state import OperatorTable, UnknownNode
from tidegate.routing.domain import Binding, Tier

OWN = Binding(Tier.EDGE, region="home", trust="low")


def test_without_tokens_the_default_serves_and_rows_win_over_it() -> None:
    table = OperatorTable(nodes={"n1": OWN}, default=EDGE)
    assert table.binding_for("n1", "", is_proven=True) == OWN
    assert table.binding_for("n2", "whatever", is_proven=True) == EDGE


def test_without_tokens_and_default_only_rows_may_join() -> None:
    table = OperatorTable(nodes={"n1": OWN})
    assert table.binding_for("n1", "", is_proven=True) == OWN
    with pytest.raises(UnknownNode, match="n2 is in no row"):
        table.binding_for("n2", "", is_proven=True)


def test_a_token_gives_its_row_and_a_node_row_wins_over_it() -> None:
    table = OperatorTable(tokens=[("tok-cloud", CLOUD)], nodes={"n1": OWN}, default=EDGE)
    assert table.binding_for("n2", "tok-cloud", is_proven=True) == CLOUD
    assert table.binding_for("n1", "tok-cloud", is_proven=True) == OWN


@pytest.mark.parametrize("token", ["", "wrong", "tok-cloud "])
def test_once_a_token_exists_every_node_must_show_one(token: str) -> None:
    table = OperatorTable(tokens=[("tok-cloud", CLOUD)], nodes={"n1": OWN}, default=EDGE)
    for node_id in ("n1", "n2"):
        with pytest.raises(UnknownNode, match="join token") as caught:
            table.binding_for(node_id, token, is_proven=True)
        assert "tok-cloud" not in str(caught.value)


def test_a_row_by_id_is_for_who_proved_the_id() -> None:
    table = OperatorTable(tokens=[("tok-cloud", CLOUD)], nodes={"n1": OWN}, default=EDGE)
    assert table.binding_for("n1", "tok-cloud", is_proven=False) == CLOUD
    assert OperatorTable(nodes={"n1": OWN}, default=EDGE).binding_for("n1", "", is_proven=False) == EDGE
    with pytest.raises(UnknownNode):
        OperatorTable(nodes={"n1": OWN}).binding_for("n1", "", is_proven=False)
