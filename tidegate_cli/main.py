"""`tidegate`: up, demo, chat, nodes, models, explain, version."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

import tidegate
from tidegate_cli.commands import Command
from tidegate_cli.commands.chat import ChatCommand
from tidegate_cli.commands.demo import DemoCommand
from tidegate_cli.commands.explain import ExplainCommand
from tidegate_cli.commands.fleet import ModelsCommand, NodesCommand
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
    VersionCommand(),
)


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
    """Exit code: 0 done, 1 could not be done (one line says why), 2 wrong arguments, 130 interrupted."""
    args = build_parser().parse_args(argv)
    try:
        code: int = asyncio.run(args.run(args))
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
    except (ChildFailed, tidegate.TidegateError) as error:
        sys.stderr.write(f"tidegate: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
