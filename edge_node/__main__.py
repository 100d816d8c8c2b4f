"""`tidegate-edge`: runs the device daemon, or one of its subcommands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import serving.lean_aiohttp  # noqa: F401

# isort: split
from edge_node.app import check_edge, run_edge
from edge_node.commands import COMMANDS, run_command
from edge_node.settings import EdgeSettings
from serving.startup import program_main

SUMMARY = (
    "Serves a language model from this device: an OpenAI-compatible API on 127.0.0.1:11435 for local "
    "programs, and work from the gateways it is linked to. It dials out, needs no open port, and works "
    "without any gateway. Subcommands work on models instead (`tidegate-edge NAME --help`): "
    + "; ".join(f"`{name}`: {about}" for name, about in COMMANDS.items())
    + "."
)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in COMMANDS:
        return run_command(arguments[0], arguments[1:])
    return program_main(
        EdgeSettings,
        run_edge,
        summary=SUMMARY,
        packages=("edge_node", "serving", "tidegate"),
        argv=arguments,
        check=check_edge,
    )


if __name__ == "__main__":
    sys.exit(main())
