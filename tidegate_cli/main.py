"""`tidegate`: up, demo, chat, nodes, models, explain, complexity, calibrate, simulate, version."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence

import tidegate
from tidegate_cli.commands import Command
from tidegate_cli.commands.calibrate import CalibrateCommand
from tidegate_cli.commands.chat import ChatCommand
from tidegate_cli.commands.complexity import ComplexityCommand
from tidegate_cli.commands.connect import told
from tidegate_cli.commands.demo import DemoCommand
from tidegate_cli.commands.explain import ExplainCommand
from tidegate_cli.commands.fleet import ModelsCommand, NodesCommand
from tidegate_cli.commands.simulate import SimulateCommand
from tidegate_cli.commands.up import UpCommand
from tidegate_cli.commands.version import VersionCommand
from tidegate_cli.stack import ChildFailed

COMMANDS: tuple[Command, ...] = (
    UpCommand(),
    DemoCommand(),
    ChatCommand(),
    NodesCommand(),
    ModelsCommand(),
    ExplainCommand(),
    ComplexityCommand(),
    CalibrateCommand(),
    SimulateCommand(),
    VersionCommand(),
)
OK, FAILED, USAGE = 0, 1, 2


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tidegate",
        description="Language models on devices and in the cloud behind one door.",
        epilog="`tidegate up` starts everything on this machine; `tidegate chat` talks to it.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        sub = commands.add_parser(command.name, help=command.help, description=command.help)
        command.arguments(sub)
        sub.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 could not be done (one line says why), 2 wrong arguments, 128 + signal number."""
    args = build_parser().parse_args(argv)
    stopped_by: list[int] = []
    try:
        return asyncio.run(_run(args, stopped_by))
    except (asyncio.CancelledError, KeyboardInterrupt):
        return 128 + (stopped_by[0] if stopped_by else signal.SIGINT)
    except BrokenPipeError:
        # Whoever read our output has enough. What is still buffered must not fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (ChildFailed, tidegate.TidegateError, OSError) as error:
        sys.stderr.write(f"tidegate: {told(error, args)}\n")
        return USAGE if isinstance(error, tidegate.InvalidRequest) else FAILED


async def _run(args: argparse.Namespace, stopped_by: list[int]) -> int:
    """The first signal cancels the command, whose clean-up is bounded; further ones change nothing."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def stop(number: int) -> None:
        stopped_by.append(number)
        if len(stopped_by) == 1 and task is not None:
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop, number)
    code: int = await args.run(args)
    return code


if __name__ == "__main__":
    sys.exit(main())
