"""`tidegate up`: everything on this machine until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import signal

import tidegate
from tidegate_cli.commands.fleet import node_table
from tidegate_cli.models import Say, prepared_models
from tidegate_cli.stack import ChildFailed, FleetOptions, LocalFleet
from tidegate_cli.stack.ports import StackPorts, free_ports

WATCH_S = 0.5


def add_stack_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--free-ports", action="store_true", help="take free ports, not the well-known ones")
    parser.add_argument(
        "--engine",
        choices=["llama_cpp", "oracle"],
        default="llama_cpp",
        help="oracle: the deterministic test engine instead of a model",
    )


async def stack_options(args: argparse.Namespace, say: Say) -> FleetOptions:
    """Prepares the models where the engine needs them. Raises ChildFailed."""
    models = await prepared_models(say) if args.engine == "llama_cpp" else None
    ports = free_ports() if args.free_ports else StackPorts()
    return FleetOptions(ports=ports, engine=args.engine, models=models)


class UpCommand:
    name = "up"
    help = "start a Redis-protocol server, a gateway, two edge nodes and a cloud node here; Ctrl-C ends all"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        add_stack_arguments(parser)

    async def run(self, args: argparse.Namespace) -> int:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        # The ordinary ways to end it: no failure, unlike for other commands.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop.set)
        serving = asyncio.create_task(_serve(args))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
            return 0
        finally:
            for task in (serving, stopping):
                task.cancel()
            await asyncio.gather(serving, stopping, return_exceptions=True)


async def _serve(args: argparse.Namespace) -> None:
    """Until cancelled. Raises ChildFailed when something does not come up or goes away."""
    options = await stack_options(args, _say)
    fleet = LocalFleet(options, _say)
    failed = False
    try:
        _say("starting")
        await fleet.start()
        await _show(fleet)
        while not (dead := fleet.dead()):
            await asyncio.sleep(WATCH_S)
        raise ChildFailed(f"{dead[0]} ended: {fleet.children[dead[0]].last_line()}")
    except (ChildFailed, tidegate.TidegateError):
        failed = bool(fleet.children)
        raise
    finally:
        _say("stopping")
        await fleet.stop(keep_logs=failed)
        if failed:
            _say(f"logs: {fleet.folder}")


async def _show(fleet: LocalFleet) -> None:
    async with tidegate.Client(fleet.address) as client:
        nodes = await client.nodes(deadline_s=5.0)
    ports = fleet.options.ports
    _say(node_table(nodes))
    _say(f"up: gRPC {fleet.address}, OpenAI base URL http://127.0.0.1:{ports.http}/v1")
    _say(f"devices' own OpenAI APIs: http://127.0.0.1:{ports.edge_a}/v1, http://127.0.0.1:{ports.edge_b}/v1")
    _say(f"logs: {fleet.folder}")
    _say(f"try: tidegate chat --gateway {fleet.address}   (Ctrl-C here ends all)")


def _say(line: str) -> None:
    print(line, flush=True)
