"""A whole Tidegate on this machine, as child processes."""

from tidegate_cli.stack.fleet import FleetOptions, LocalFleet
from tidegate_cli.stack.process import Child, ChildFailed

__all__ = ["Child", "ChildFailed", "FleetOptions", "LocalFleet"]
