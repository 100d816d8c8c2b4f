"""The operator's table: which token may join, and what tier, region, trust and cost a node has.

A node's own claims about these are never read. A binding by a proven node_id wins over the one of its join
token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from serving.security import TokenTable
from tidegate.routing.domain import Binding


class UnknownNode(Exception):
    """The node may not join; the message is for the node's operator."""


class OperatorTable:
    """Looks up a node's binding.

    As soon as one join token is configured every node must show one. `default` is the binding of nodes that
    no row names, and only serves where no token is configured; None turns such nodes away.
    """

    def __init__(
        self,
        *,
        tokens: Iterable[tuple[str, Binding]] = (),
        nodes: Mapping[str, Binding] | None = None,
        default: Binding | None = None,
    ) -> None:
        self._tokens: TokenTable[Binding] = TokenTable(tokens)
        self._nodes = dict(nodes or {})
        self._default = default

    def binding_for(self, node_id: str, join_token: str, *, is_proven: bool) -> Binding:
        """`is_proven`: the node showed that the id is its own, else rows by id do not count.

        Raises UnknownNode.
        """
        by_token = self._tokens.lookup(join_token)
        if len(self._tokens) and by_token is None:
            raise UnknownNode("join token missing or unknown: give the node one of the gateway's join tokens")
        by_id = self._nodes.get(node_id) if is_proven else None
        binding = by_id or by_token or self._default
        if binding is None:
            raise UnknownNode(
                f"node {node_id} is in no row of the operator's table: add a [[nodes]] row with a join token "
                "or its node_ids to the gateway's settings, or set default_tier"
            )
        return binding
