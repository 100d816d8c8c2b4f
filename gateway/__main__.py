"""`tidegate-gateway`: routes requests to edge and cloud nodes."""

from __future__ import annotations

import sys

import serving.lean_aiohttp  # noqa: F401

# isort: split
from gateway.app import check
from gateway.app import main as run_gateway
from gateway.settings import GatewaySettings
from serving.startup import program_main


def main() -> int:
    return program_main(
        GatewaySettings,
        run_gateway,
        summary="Tidegate gateway: routes each request to the node that will meet its needs most cheaply.",
        packages=("gateway", "serving", "tidegate"),
        check=check,
    )


if __name__ == "__main__":
    sys.exit(main())
