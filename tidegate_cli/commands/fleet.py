"""`tidegate nodes` and `tidegate models`"""

from __future__ import annotations

import argparse

import tidegate
from tidegate_cli.commands import connect
from tidegate_cli.render import as_json, ms, table

DEADLINE_S = 10.0


def power_words(power: tidegate.Power | None) -> str:
    """battery 63 %, 7.5 W, metered"""
    if power is None:
        return "-"
    words = []
    if power.battery_share is not None:
        words.append(("battery " if power.on_battery else "mains, ") + f"{100 * power.battery_share:.0f} %")
    elif power.on_battery:
        words.append("battery")
    if power.draw_w is not None:
        words.append(f"{power.draw_w:.1f} W")
    if power.work_w is not None:
        words.append(f"work +{power.work_w:.1f} W")
    if power.metered:
        words.append("metered")
    return ", ".join(words) or "-"


def node_table(nodes: tuple[tidegate.NodeInfo, ...]) -> str:
    """With a column about electricity where any node says something of it, and a line for each in trouble."""
    header, rows = NODE_HEADER, node_rows(nodes)
    if any(n.power is not None for n in nodes):
        header = [*header[:-1], "power", header[-1]]
        rows = [
            [*row[:-1], power_words(n.power), row[-1]] for n, row in zip(_sorted(nodes), rows, strict=True)
        ]
    troubles = [f"{n.name}: {n.trouble}" for n in _sorted(nodes) if n.trouble]
    return "\n".join([table(header, rows), *troubles])


def _sorted(nodes: tuple[tidegate.NodeInfo, ...]) -> list[tidegate.NodeInfo]:
    return sorted(nodes, key=lambda n: (n.tier.value, n.name))


def node_rows(nodes: tuple[tidegate.NodeInfo, ...]) -> list[list[str]]:
    rows = []
    for n in _sorted(nodes):
        variants = ", ".join(f"{v.model} {v.quantization}".strip() for v in n.variants)
        decode = f"{n.speeds.decode[0][1]:.0f}" if n.speeds.decode else "-"
        rows.append(
            [
                n.name,
                n.tier.value,
                n.health.value + _remark(n),
                variants,
                f"{n.running}/{n.slots}+{n.queued}",
                ms(n.rtt_ms),
                f"{n.speeds.prefill_tokens_per_s:.0f}/{decode}",
                n.node_id[:12],
            ]
        )
    return rows


def _remark(node: tidegate.NodeInfo) -> str:
    if not node.linked_here:
        return " (other replica)"
    return f" (asleep, loads in {node.wake_ms / 1000:.1f} s)" if node.wake_ms > 0 else ""


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
        print(as_json(nodes) if args.json else node_table(nodes))
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
                # The gateway counts them per model, not per variant.
                str(m.ready_nodes) if number == 0 else "",
                v.digest[:19],
            ]
            for m in models
            for number, v in enumerate(m.variants)
        ]
        print(table(["model", "variant", "perplexity", "answers", "context", "ready nodes", "digest"], rows))
        return 0
