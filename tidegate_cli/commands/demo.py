"""`tidegate demo`: five acts on a real fleet; exit 0 only if each behaved as it says."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import tidegate
from tidegate_cli.commands.up import add_stack_arguments, stack_options
from tidegate_cli.demo.burst import burst_act
from tidegate_cli.demo.failures import kill_act, offline_act, restricted_act
from tidegate_cli.demo.prompts import load_prompts
from tidegate_cli.demo.report import Act, Say
from tidegate_cli.demo.routes import RoutesAct
from tidegate_cli.models import facts
from tidegate_cli.render import as_json
from tidegate_cli.stack import FleetOptions, LocalFleet

ACTS = "abcde"


class DemoCommand:
    name = "demo"
    help = "show on a real fleet what Tidegate does: routes, a burst, a kill, restricted data, no uplink"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        add_stack_arguments(parser)
        parser.add_argument("--prompts", type=Path, help="file with prompts, one a line, or JSON lines")
        parser.add_argument("--acts", default=ACTS, help=f"which acts to play (default {ACTS})")
        parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")

    async def run(self, args: argparse.Namespace) -> int:
        say: Say = _to_stderr if args.json else _to_stdout
        prompts, left_out = load_prompts(args.prompts)
        started_s = time.monotonic()
        options = await stack_options(args)
        _introduce(options, say)
        if left_out:
            say(f"{left_out} prompts left out: too long for the demo models' context")
        fleet = LocalFleet(options, lambda line: say(f"  {line}"))
        acts: list[Act] = []
        try:
            await fleet.start()
            say("")
            await _play(fleet, prompts, args.acts, acts, say)
        finally:
            await fleet.stop()
        behaved = bool(acts) and all(act.behaved for act in acts)
        took_s = time.monotonic() - started_s
        if args.json:
            print(
                as_json({"behaved": behaved, "seconds": round(took_s, 1), "acts": [_facts(a) for a in acts]})
            )
        failed = [act.key for act in acts if not act.behaved]
        say(f"{'all acts behaved' if behaved else 'did NOT behave: ' + ', '.join(failed)} ({took_s:.0f} s)")
        return 0 if behaved else 1


async def _play(fleet: LocalFleet, prompts: list[str], which: str, acts: list[Act], say: Say) -> None:
    """Act by act; each is shown as soon as it is over."""

    def done(act: Act) -> None:
        say(act.title)
        act.show(say)
        acts.append(act)

    if "a" in which:
        async with tidegate.Client(fleet.address) as client:
            done(await RoutesAct(client, prompts).run())
    if "b" in which:
        done(await burst_act(fleet, prompts, await _level(fleet, prompts)))
    if "c" in which:
        done(await kill_act(fleet, prompts))
    if "d" in which:
        done(await restricted_act(fleet, prompts))
    if "e" in which:
        done(await offline_act(fleet, prompts))


async def _level(fleet: LocalFleet, prompts: list[str]) -> float:
    """A quality level between the tiers for the typical prompt: the median of the midpoints."""
    levels = []
    async with tidegate.Client(fleet.address) as client:
        for prompt in prompts[:32]:
            candidates = (await client.explain(prompt)).explanation.candidates
            goods = [c.route.p_good for c in candidates]
            levels.append((min(goods) + max(goods)) / 2)
    return sorted(levels)[len(levels) // 2]


def _introduce(options: FleetOptions, say: Say) -> None:
    if options.models is None:
        say("Engine: the deterministic test oracle; nothing here is a language model.")
        return
    edge, cloud = facts(options.models.edge), facts(options.models.cloud)
    say("SmolLM2-135M-Instruct on CPU, one thread per engine. Measured on this machine at set-up:")
    for tier, f in (("edge", edge), ("cloud stand-in", cloud)):
        perplexity = f"{f.perplexity:.2f}" if f.perplexity is not None else "not measured"
        say(f"  {tier}: {f.quantization}, {f.mbytes:.0f} MB, perplexity {perplexity}")
    say(
        f"The cloud node stands in for yours: a better quantization behind an injected round trip of "
        f"{options.cloud_delay_ms:.0f} ms.\nThe one setting that points it at vLLM: "
        "[engine.openai_http] base_url in the cloud node's TOML."
    )
    say("P(good) is a stand-in from difficulty and perplexity rank, not a measured quality.\n")


def _facts(act: Act) -> dict[str, object]:
    return {
        "act": act.key,
        "title": act.title,
        "behaved": act.behaved,
        "rows": [dict(zip(act.header, row, strict=False)) for row in act.rows],
        "checks": [{"claim": claim, "holds": holds} for claim, holds in act.checks],
    }


def _to_stdout(line: str) -> None:
    print(line, flush=True)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
