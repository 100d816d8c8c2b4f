"""`tidegate version`"""

from __future__ import annotations

import argparse
import platform

import tidegate
from tidegate_cli.render import as_json


class VersionCommand:
    name = "version"
    help = "show the versions of Tidegate and Python"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="machine-readable")

    async def run(self, args: argparse.Namespace) -> int:
        facts = {"tidegate": tidegate.__version__, "python": platform.python_version()}
        print(as_json(facts) if args.json else "\n".join(f"{k} {v}" for k, v in facts.items()))
        return 0
