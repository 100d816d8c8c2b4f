"""How a program starts and stops: arguments, checks before binding, signals, exit codes.

Exit codes: 0 asked to stop, 1 could not go on (one line on stderr says why), 2 wrong arguments or settings.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import importlib.metadata
import ipaddress
import logging
import os
import signal
import socket
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from serving.logs import setup_logging
from serving.settings import ListenSettings, ProgramSettings, SettingsError, env_prefix, load_settings

_log = logging.getLogger(__name__)

DISTRIBUTION = "tidegate-services"
SDK_DISTRIBUTION = "tidegate"
# What a program may take to close everything once its requests have had their grace.
AFTER_DRAIN_S = 30.0
# What cleaning up may take after a program was cut off, threads included; then the process ends regardless.
LAST_RESORT_S = 10.0
EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
# With gRPC's event engine a message passes one more thread before Python sees it (docs/decisions/0010).
GRPC_EXPERIMENTS = "-event_engine_client,-event_engine_listener"


class ProgramError(Exception):
    """The program cannot go on. The message is one line for a person and says what to do."""


@dataclass(frozen=True, slots=True)
class ProgramArgs:
    config: Path | None = None
    insecure: bool = False
    check_config: bool = False


Main = Callable[[asyncio.Event], Awaitable[None]]
S = TypeVar("S", bound=ProgramSettings)


def check_distributions(packages: Iterable[str]) -> None:
    """Raises ProgramError when one of our import packages is also owned by another distribution.

    Two wheels that install the same folder overwrite each other's files; what runs is then neither.
    """
    ours = {DISTRIBUTION, SDK_DISTRIBUTION}
    wanted = tuple(packages)
    for distribution in importlib.metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name in ours:
            continue
        for package in wanted:
            if _owns(distribution, package):
                raise ProgramError(
                    f"the import package '{package}' is also installed by the distribution '{name}', which "
                    f"overwrites it: uninstall '{name}', or use an environment of its own"
                )


def _owns(distribution: importlib.metadata.Distribution, package: str) -> bool:
    record = "\n" + (distribution.read_text("RECORD") or "")
    return f"\n{package}/__init__.py," in record or f"\n{package}.py," in record


def check_all(*parts: Callable[[], object]) -> None:
    """Runs every part and raises what all of them found, each problem once: SettingsError, or ProgramError
    where no part raised a SettingsError."""
    lines: dict[str, None] = {}
    kind: type[SettingsError | ProgramError] = ProgramError
    for part in parts:
        try:
            part()
        except SettingsError as error:
            kind = SettingsError
            lines.update(dict.fromkeys(error.problems))
        except ProgramError as error:
            lines.update(dict.fromkeys(str(error).splitlines()))
    if lines:
        raise SettingsError(*lines) if kind is SettingsError else ProgramError("\n".join(lines))


def is_loopback(host: str) -> bool:
    if host == "localhost" or host.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(listeners: Mapping[str, ListenSettings], *, keys_configured: bool, insecure: bool) -> None:
    """Raises ProgramError for a listener beyond loopback that lacks TLS or keys, unless `insecure`.

    `listeners` are named by their settings key, for the message.
    """
    for name, listen in listeners.items():
        missing = [
            word
            for word, present in (("TLS", listen.tls is not None), ("keys", keys_configured))
            if not present
        ]
        if not missing or is_loopback(listen.host):
            continue
        lacks = " and ".join(missing)
        if not insecure:
            raise ProgramError(
                f"{name}: refusing to listen on {listen.host or 'all addresses'} without {lacks}: configure "
                f"{lacks}, set {name}.host to 127.0.0.1, or pass --insecure if the network is trusted"
            )
        _log.warning("listener is open", extra={"listener": name, "host": listen.host, "lacks": lacks})


def bind_socket(listen: ListenSettings, key: str, program: str) -> socket.socket:
    """A listening TCP socket. Raises ProgramError in one line when the port is busy or not allowed."""
    host = listen.host.strip("[]")
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(256)
            bound.setblocking(False)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise bind_problem(listen, key, program, error) from error
    return bound


def bind_problem(
    listen: ListenSettings, key: str, program: str, error: OSError | None = None
) -> ProgramError:
    """The one line for a listener that could not be bound; without `error` the port counts as busy."""
    where = f"{listen.host}:{listen.port}"
    setting = f"{key}.port (or TIDEGATE_{program.upper()}__{key.upper().replace('.', '__')}__PORT)"
    if error is None or error.errno == errno.EADDRINUSE:
        return ProgramError(
            f"{where} is in use: stop the program that holds it, or set {setting} to a free port"
        )
    if error.errno == errno.EACCES:
        return ProgramError(f"not allowed to listen on {where}: set {setting} to a port above 1023")
    return ProgramError(f"cannot listen on {where} ({error.strerror}): check {key}.host and {setting}")


def parse_program_args(
    settings: type[ProgramSettings], summary: str, argv: Sequence[str] | None = None
) -> ProgramArgs:
    """Parses a program's command line; --help and --version print and exit."""
    program = settings.program
    parser = argparse.ArgumentParser(
        prog=f"tidegate-{program}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=textwrap.fill(summary, 96),
        epilog=_help_epilog(settings),
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings in TOML; unset keys keep defaults"
    )
    parser.add_argument(
        "--check-config", action="store_true", help="read the settings, report problems, exit"
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="allow listeners beyond loopback without TLS or keys, and plain links to gateways elsewhere",
    )
    parser.add_argument("--version", action="version", version=f"tidegate-{program} {_version()}")
    args = parser.parse_args(argv)
    return ProgramArgs(config=args.config, insecure=args.insecure, check_config=args.check_config)


def _help_epilog(settings: type[ProgramSettings]) -> str:
    prefix = env_prefix(settings)
    width = max(len(name) for name in settings.model_fields)
    keys = "\n".join(
        f"  {name:<{width}}  {(field.description or '').splitlines()[0]}"
        for name, field in settings.model_fields.items()
    )
    return (
        f"settings (docs/configuration.md has all of them):\n{keys}\n\n"
        f"Any key can be set by an environment variable named after its path, which wins over the file:\n"
        f"  {prefix}SECTION__KEY=VALUE, for example {prefix}LOG__LEVEL=debug\n\n"
        f"exit codes: 0 asked to stop, 1 could not go on, 2 wrong arguments or settings\n"
    )


def _version() -> str:
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def program_main(
    settings_class: type[S],
    main: Callable[[S, ProgramArgs, asyncio.Event], Awaitable[None]],
    *,
    summary: str,
    packages: Sequence[str],
    argv: Sequence[str] | None = None,
    check: Callable[[S, ProgramArgs], None] = lambda settings, args: None,
) -> int:
    """Everything a program's `main()` does around its coroutine; returns the exit code.

    For --check-config `check` finds what the settings' types cannot; raises SettingsError or ProgramError.
    """
    args = parse_program_args(settings_class, summary, argv)
    program = settings_class.program
    # Read when gRPC is first used; an operator's own choice stays.
    os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)
    try:
        check_distributions(packages)
        settings = load_settings(settings_class, args.config)
        if args.check_config:
            check(settings, args)
    except SettingsError as error:
        return _complain(program, EXIT_USAGE, *error.problems)
    except ProgramError as error:
        return _complain(program, EXIT_FAILED, *str(error).splitlines())
    if args.check_config:
        sys.stdout.write(f"tidegate-{program}: settings are fine\n")
        return EXIT_OK
    setup_logging(program, settings.log.level, settings.log.json_lines)
    stop_limit_s = settings.drain_grace_s + AFTER_DRAIN_S
    return run_program(program, lambda stop: main(settings, args, stop), stop_limit_s=stop_limit_s)


def run_program(program: str, main: Main, *, stop_limit_s: float = 30.0) -> int:
    """Runs `main(stop)` until it returns; SIGTERM and SIGINT set `stop`. Returns the exit code.

    `main` then has `stop_limit_s` seconds to return before it is cancelled; a second signal cancels it at
    once, and whatever still runs LAST_RESORT_S later ends with the process. Expected problems (ProgramError,
    SettingsError) are one line on stderr instead of a traceback.
    """
    try:
        # With a factory of its own the runner leaves the thread's current loop alone.
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            runner.run(_supervise(main, stop_limit_s))
    except SettingsError as error:
        return _complain(program, EXIT_USAGE, *error.problems)
    except ProgramError as error:
        return _complain(program, EXIT_FAILED, str(error))
    except asyncio.CancelledError:
        return _complain(program, EXIT_FAILED, f"did not stop within {stop_limit_s:g} s and was cut off")
    return EXIT_OK


async def _supervise(main: Main, stop_limit_s: float) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    task = asyncio.ensure_future(main(stop))

    def on_signal(number: int) -> None:
        if stop.is_set():
            task.cancel()
            return
        _log.info("stopping", extra={"signal": signal.Signals(number).name})
        stop.set()
        _end_for_sure(stop_limit_s + LAST_RESORT_S)
        loop.call_later(stop_limit_s, task.cancel)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        await task
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _end_for_sure(after_s: float) -> None:
    """A loop that hangs, or a thread that never returns, does not keep the process."""

    def end() -> None:
        sys.stderr.write(f"did not stop within {after_s:g} s: ending the process\n")
        sys.stderr.flush()
        os._exit(EXIT_FAILED)

    timer = threading.Timer(after_s, end)
    timer.daemon = True
    timer.start()


def _complain(program: str, code: int, *lines: str) -> int:
    for line in lines:
        sys.stderr.write(f"tidegate-{program}: {line}\n")
    sys.stderr.flush()
    return code
