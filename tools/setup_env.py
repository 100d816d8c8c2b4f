#!/usr/bin/env python3
"""Prepares this checkout: `python3 tools/setup_env.py [runtime|dev|proto|models|compiled]...`

Standard library only, because it runs before anything is installed. Each group is done once and stamped;
a second run takes a fraction of a second. Exit status: 0 done, 1 a step failed (its log file is named),
2 this machine lacks something (one line each, saying what to do).
"""

import signal
import sys

# Checked before the other imports: they need this version themselves.
if sys.version_info < (3, 11):  # noqa: UP036 - an older Python gets this far and shall say why it stops
    _found = ".".join(map(str, sys.version_info[:3]))
    sys.stderr.write(
        f"setup: Python 3.11 or newer is needed, this is {_found}: "
        "apt-get install python3.11 python3.11-venv, or name another: make PYTHON=/path/to/python3.11\n"
    )
    sys.exit(2)

from envsetup import groups, preflight, progress


def main(arguments: list[str]) -> int:
    wanted = arguments or ["runtime"]
    unknown = [name for name in wanted if name not in groups.NAMES]
    if unknown:
        progress.error(f"unknown group {unknown[0]!r}; there are: {' '.join(groups.NAMES)}")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        for name in wanted:
            groups.prepare(name)
    except preflight.Unmet as unmet:
        for line in unmet.lines:
            progress.error(line)
        return 2
    except progress.StepFailed as failed:
        progress.error(str(failed))
        return 1
    except KeyboardInterrupt:
        progress.error("interrupted; the next run takes it up again")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
