"""`tidegate simulate`: starts the simulator as a child and passes its words and its exit code on."""

from __future__ import annotations

import argparse
import asyncio

from tidegate_cli.stack.process import python_module


class SimulateCommand:
    name = "simulate"
    help = "play a trace on a fleet that does not exist, under one policy or several"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--trace", required=True, help="Azure CSV, Mooncake JSONL or synthetic:RATE:SECONDS"
        )
        parser.add_argument("--fleet", required=True, help="TOML file that describes the nodes")
        parser.add_argument("--policy", help="which policy decides; default tidegate")
        parser.add_argument(
            "--compare", help="several policies on the same requests, instead of --policy: a,b,c or all"
        )
        parser.add_argument(
            "--seed", type=int, help="a whole number of 0 or more; same seed, same result; default 0"
        )
        parser.add_argument("--rate", type=float, help="requests per second on average; default as recorded")
        parser.add_argument("--limit", type=int, help="only the first so many requests of the file")
        parser.add_argument("--max-tokens", type=int, help="what requests ask for at most; default 1024")
        parser.add_argument(
            "--target-share", type=float, help="share that must meet the budget; default: the gateway's"
        )
        parser.add_argument("--warm-up", type=int, help="requests per node that are not counted; default 200")
        parser.add_argument("--json", action="store_true", help="machine-readable")
        parser.add_argument("--plot", help="a picture of the comparison (needs the extra `report`)")

    async def run(self, args: argparse.Namespace) -> int:
        child = await asyncio.create_subprocess_exec(*python_module("simulator", *simulator_arguments(args)))
        try:
            return await child.wait()
        finally:
            if child.returncode is None:
                child.terminate()
                await child.wait()


def simulator_arguments(args: argparse.Namespace) -> list[str]:
    """What was given, as the simulator takes it."""
    names = (
        "trace", "fleet", "policy", "compare", "seed", "rate", "limit",
        "max_tokens", "target_share", "warm_up", "plot",
    )  # fmt: skip
    given = [(name, getattr(args, name)) for name in names if getattr(args, name) is not None]
    words = [word for name, value in given for word in (f"--{name.replace('_', '-')}", str(value))]
    return [*words, "--json"] if args.json else words
