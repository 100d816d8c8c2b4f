"""`tidegate nodes` and `tidegate models`"""

from __future__ import annotations

import argparse

import tidegate
from tidegate_cli.commands import connect
from tidegate_cli.render import as_json, ms, table

DEADLINE_S = 10.0


def node_rows(nodes: tuple[tidegate.NodeInfo, ...]) -> list[list[str]]:
    rows = []
    for n in sorted(nodes, key=lambda n: (n.tier.value, n.name)):
        variants = ", ".join(f"{v.model} {v.quantization}".strip() for v in n.variants)
        decode = f"{n.speeds.decode[0][1]:.0f}" if n.speeds.decode else "-"
        rows.append(
            [
                n.name,
                n.tier.value,
                n.health.value + ("" if n.linked_here else " (other replica)"),
                variants,
                f"{n.running}/{n.slots}+{n.queued}",
                ms(n.rtt_ms),
                f"{n.speeds.prefill_tokens_per_s:.0f}/{decode}",
                n.node_id[:12],
            ]
        )
    return rows


NODE_HEADER = ["node", "tier", "health", "variants", "run/slots+queue", "rtt", "prefill/decode t/s", "id"]


class NodesCommand:
    name = "nodes"
    help = "list the nodes the gateway knows"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        connect.add_arguments(parser)
        parser.add_argument("--json", action="store_true", help="machine-readable")

    async def run(self, args: argparse.Namespace) -> int:
        async with connect.client(args) as client:
            nodes = await client.nodes(deadline_s=DEADLINE_S)
        print(as_json(nodes) if args.json else table(NODE_HEADER, node_rows(nodes)))
        return 0


class ModelsCommand:
    name = "models"
    help = "list the models that can be asked for"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        connect.add_arguments(parser)
        parser.add_argument("--json", action="store_true", help="machine-readable")

    async def run(self, args: argparse.Namespace) -> int:
        async with connect.client(args) as client:
            models = await client.models(deadline_s=DEADLINE_S)
        if args.json:
            print(as_json(models))
            return 0
        rows = [
            [
                m.name,
                v.quantization or "-",
                f"{v.perplexity:.2f}" if v.perplexity is not None else "not measured",
                f"{v.accuracy:.0%}" if v.accuracy is not None else "-",
                str(v.context_tokens),
                str(m.ready_nodes),
                v.digest[:19],
            ]
            for m in models
            for v in m.variants
        ]
        print(table(["model", "variant", "perplexity", "answers", "context", "ready nodes", "digest"], rows))
        return 0
