"""`tidegate demo`: five acts on a real fleet; exit 0 only if each behaved as it says."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import tidegate
from tidegate_cli.commands.up import add_stack_arguments, stack_options
from tidegate_cli.demo import burst, failures, routes
from tidegate_cli.demo.prompts import load_prompts
from tidegate_cli.demo.report import Act, Say, Stage
from tidegate_cli.models import facts
from tidegate_cli.render import as_json, terminal_width
from tidegate_cli.stack import ChildFailed, FleetOptions, LocalFleet

ACTS: dict[str, tuple[Callable[[], Act], Callable[[Stage, Act], Awaitable[None]]]] = {
    "a": (routes.new_act, routes.play_routes),
    "b": (burst.new_act, burst.play_burst),
    "c": (failures.kill_act, failures.play_kill),
    "d": (failures.restricted_act, failures.play_restricted),
    "e": (failures.offline_act, failures.play_offline),
}
ALL = "".join(ACTS)


class DemoCommand:
    name = "demo"
    help = "show on a real fleet what Tidegate does: routes, a burst, a kill, restricted data, no uplink"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        add_stack_arguments(parser)
        parser.add_argument("--prompts", type=Path, help="file with prompts, one a line, or JSON lines")
        parser.add_argument(
            "--acts", type=_acts, default=ALL, help=f"which acts to play, in this order (default {ALL})"
        )
        parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")

    async def run(self, args: argparse.Namespace) -> int:
        say: Say = _to_stderr if args.json else _to_stdout
        started_s = time.monotonic()
        prompts = load_prompts(args.prompts)
        options = await stack_options(args, say)
        _introduce(options, say)
        if prompts.shortened:
            say(f"{prompts.shortened} prompts cut to their beginning: too long for the models' context")
        fleet = LocalFleet(options, lambda line: say(f"  {line}"))
        acts: list[Act] = []
        broken = True
        try:
            await fleet.start()
            broken = await _play(Stage(fleet, prompts.texts, say), args.acts, acts)
        finally:
            await fleet.stop(keep_logs=broken)
        return _conclude(acts, args.acts, time.monotonic() - started_s, args.json, say)


async def _play(stage: Stage, which: str, acts: list[Act]) -> bool:
    """Act by act, each shown as soon as it is over. True: one could not be played to its end."""
    for key in which:
        new, play = ACTS[key]
        act = new()
        acts.append(act)
        stage.say(f"\n{act.title}")
        started_s = time.monotonic()
        problem = ""
        try:
            await play(stage, act)
        except (ChildFailed, tidegate.TidegateError) as error:
            problem = str(error)
            act.check(f"played to its end: {problem}", False)
        act.seconds = time.monotonic() - started_s
        act.show(stage.say, terminal_width())
        if problem:
            stage.say(f"logs: {stage.fleet.folder}")
            return True
    return False


def _conclude(acts: list[Act], which: str, took_s: float, json: bool, say: Say) -> int:
    behaved = len(acts) == len(which) and all(act.behaved for act in acts)
    if json:
        result = {"behaved": behaved, "seconds": round(took_s, 1), "acts": [act.facts() for act in acts]}
        print(as_json(result))
    failed = [act.key for act in acts if not act.behaved]
    say(f"\n{'all acts behaved' if behaved else 'did NOT behave: ' + ', '.join(failed)} ({took_s:.0f} s)")
    return 0 if behaved else 1


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


def _acts(text: str) -> str:
    if not text or set(text) - set(ALL):
        raise argparse.ArgumentTypeError(f"must be letters of {ALL}")
    return text


def _to_stdout(line: str) -> None:
    print(line, flush=True)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
