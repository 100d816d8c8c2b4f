"""`tidegate explain "prompt"`"""

from __future__ import annotations

import argparse

import tidegate
from tidegate.client.request import GenerateOptions
from tidegate_cli.commands import connect
from tidegate_cli.render import as_json, ms, table

DEADLINE_S = 10.0


def candidate_rows(explanation: tidegate.Explanation) -> list[list[str]]:
    return [
        [
            c.route.node_name,
            c.route.tier.value,
            c.route.quantization or "-",
            ms(c.route.predicted_ttft_ms),
            ms(c.route.predicted_ttft_p95_ms),
            f"{c.route.predicted_tpot_ms:.1f} ms",
            ms(c.route.predicted_total_ms),
            f"{c.route.p_meet:.2f}",
            "-" if c.route.p_good is None else f"{c.route.p_good:.2f}",
            "certified" if c.route.certified else "not certified",
            f"{c.cost_per_mtoken:.4g}",
            str(c.route.expected_cached_tokens),
            "yes" if c.qualified else "no",
        ]
        for c in explanation.candidates
    ]


HEADER = [
    "node",
    "tier",
    "variant",
    "ttft",
    "p95",
    "per token",
    "total",
    "P(meet)",
    "P(good)",
    "from outcomes",
    "cost",
    "warm",
    "qualifies",
]


def told(route: tidegate.Route) -> str:
    """What a key without the admin scope gets to know."""
    return (
        f"{route.why}\n{route.node_name} ({route.tier.value}), {route.model} {route.quantization}".rstrip()
        + f": first token in about {ms(route.predicted_ttft_ms)}, 95 of 100 within "
        f"{ms(route.predicted_ttft_p95_ms)}\nthe other candidates need a key with the admin scope"
    )


class ExplainCommand:
    name = "explain"
    help = "show where a prompt would go now, and why; generates nothing"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("prompt", help="the prompt")
        connect.add_arguments(parser)
        connect.add_request_arguments(parser)
        parser.add_argument("--session", default="", help="session id, to count its warm prefix")
        parser.add_argument("--json", action="store_true", help="machine-readable")

    async def run(self, args: argparse.Namespace) -> int:
        options: GenerateOptions = {
            "model": args.model,
            "budget": connect.budget(args),
            "min_p_good": args.min_p_good,
            "placement": tidegate.Placement(args.placement),
            "data_class": args.data_class,
            "max_tokens": args.max_tokens,
            "on_miss": connect.on_miss(args),
            "session_id": args.session,
        }
        async with connect.client(args) as client:
            try:
                decision = await client.explain(args.prompt, deadline_s=DEADLINE_S, **options)
            except tidegate.PermissionDenied:
                # Who may not see the fleet may still know where its own request would go.
                route = await client.route(args.prompt, deadline_s=DEADLINE_S, **options)
                print(as_json(route) if args.json else told(route))
                return 0
        if args.json:
            print(as_json(decision))
            return 0
        reasons = decision.explanation
        print(decision.route.why if decision.route else f"refused: {decision.refusal}")
        print(
            f"prompt about {reasons.prompt_tokens} tokens, difficulty {reasons.difficulty:.2f}, "
            f"decided in {reasons.decision_ms:.2f} ms"
        )
        if reasons.filtered:
            print("left out: " + ", ".join(f"{n} by {name}" for name, n in sorted(reasons.filtered.items())))
        print(table(HEADER, candidate_rows(reasons)))
        return 0
