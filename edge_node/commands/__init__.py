"""The subcommands of `tidegate-edge`: work on models beside the daemon. Each is imported when asked for.

Exit codes: 0 done, 1 could not go on (one line on stderr says why), 2 wrong arguments.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from serving.engines.base import EngineUnavailable
from serving.settings import SettingsError

COMMANDS = {
    "quantize": "make smaller variants of a model and measure what each costs in quality",
    "prune": "make variants with fewer layers",
    "report": "measure every variant on this device",
    "plan": "show what a model needs in memory, and whether it fits",
    "bench": "measure a model's speed over batch sizes and threads",
}


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Runs one subcommand with its own arguments; returns the exit code."""
    module = importlib.import_module(f"edge_node.commands.{name}")
    try:
        return int(module.main(arguments))
    except (EngineUnavailable, OSError) as error:
        sys.stderr.write(f"tidegate-edge {name}: {error}\n")
        return 1
    except SettingsError as error:
        sys.stderr.write("".join(f"tidegate-edge {name}: {problem}\n" for problem in error.problems))
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"tidegate-edge {name}: stopped\n")
        return 130
