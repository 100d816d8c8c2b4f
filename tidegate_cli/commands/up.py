"""`tidegate up`: everything on this machine until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import signal

import tidegate
from tidegate_cli.commands.fleet import NODE_HEADER, node_rows
from tidegate_cli.models import prepared_models
from tidegate_cli.render import table
from tidegate_cli.stack import ChildFailed, FleetOptions, LocalFleet
from tidegate_cli.stack.ports import StackPorts, free_ports


def add_stack_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--free-ports", action="store_true", help="take free ports, not the well-known ones")
    parser.add_argument(
        "--engine",
        choices=["llama_cpp", "oracle"],
        default="llama_cpp",
        help="oracle: the deterministic test engine instead of a model",
    )


async def stack_options(args: argparse.Namespace) -> FleetOptions:
    """Prepares the models where the engine needs them. Raises ChildFailed."""
    models = await prepared_models() if args.engine == "llama_cpp" else None
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
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        fleet = LocalFleet(await stack_options(args), lambda line: print(f"  {line}", flush=True))
        stopping = asyncio.create_task(stop.wait())
        starting = asyncio.create_task(fleet.start())
        try:
            print("starting", flush=True)
            await asyncio.wait({stopping, starting}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                return 0
            starting.result()
            await self._show(fleet)
            while not stop.is_set():
                if dead := fleet.dead():
                    raise ChildFailed(f"{dead[0]} ended: {fleet.children[dead[0]].last_line()}")
                await asyncio.wait({stopping}, timeout=0.5)
            return 0
        finally:
            for task in (starting, stopping):
                task.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)
            print("stopping", flush=True)
            await fleet.stop()

    async def _show(self, fleet: LocalFleet) -> None:
        async with tidegate.Client(fleet.address) as client:
            nodes = await client.nodes(deadline_s=5.0)
        ports = fleet.options.ports
        print(table(NODE_HEADER, node_rows(nodes)))
        print(f"up: gRPC 127.0.0.1:{ports.grpc}, OpenAI base URL http://127.0.0.1:{ports.http}/v1")
        print(f"logs: {fleet.folder}")
        print(f"try: tidegate chat --gateway 127.0.0.1:{ports.grpc}   (Ctrl-C here ends all)", flush=True)
