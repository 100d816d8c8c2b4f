"""`managed_daemon.py CONFIG SOCKET`: a device daemon whose local API listens on a local socket."""

from __future__ import annotations

import asyncio
import signal
import sys

from aiohttp import web

from edge_node.app import LocalKeys, build_app
from edge_node.settings import EdgeSettings
from serving.node_program import NodeProgram
from serving.openai_api.app import make_runner
from serving.openai_api.options import FrontOptions
from serving.settings import load_settings
from serving.startup import ProgramArgs


async def main(config: str, socket: str) -> None:
    settings, options, stop = load_settings(EdgeSettings, config), FrontOptions(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    node, api = NodeProgram(settings, ProgramArgs()), settings.local_api
    runner = make_runner(build_app(node, api, LocalKeys.from_settings(api), options), options)
    await runner.setup()
    await web.UnixSite(runner, socket).start()
    await node.run(stop)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
