"""`tidegate-edge`: runs the device daemon."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from edge_node.app import run_edge
from edge_node.settings import EdgeSettings
from serving.startup import program_main

SUMMARY = (
    "Serves a language model from this device: an OpenAI-compatible API on 127.0.0.1:11435 for local "
    "programs, and work from the gateways it is linked to. It dials out, needs no open port, and works "
    "without any gateway."
)


def main(argv: Sequence[str] | None = None) -> int:
    return program_main(
        EdgeSettings, run_edge, summary=SUMMARY, packages=("edge_node", "serving", "tidegate"), argv=argv
    )


if __name__ == "__main__":
    sys.exit(main())
