"""One module per command of `tidegate`."""

from __future__ import annotations

import argparse
from typing import Protocol


class Command(Protocol):
    """A subcommand: its arguments and what it does."""

    name: str
    help: str

    def arguments(self, parser: argparse.ArgumentParser) -> None: ...

    async def run(self, args: argparse.Namespace) -> int:
        """Returns the exit code; raises ChildFailed or TidegateError for one line on stderr."""
        ...
