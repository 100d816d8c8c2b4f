"""How commands reach a gateway: flags first, then the environment."""

from __future__ import annotations

import argparse
import os

import tidegate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gateway",
        type=_addresses,
        default=os.environ.get("TIDEGATE_ADDRESS") or "localhost:50051",
        help="gateway address, several separated by commas (TIDEGATE_ADDRESS; default localhost:50051)",
    )
    parser.add_argument(
        "--api-key-env",
        default="TIDEGATE_API_KEY",
        metavar="NAME",
        help="environment variable that holds the API key (default TIDEGATE_API_KEY)",
    )
    parser.add_argument("--ca", help="CA in PEM that signed the gateway's certificate; switches TLS on")


def _addresses(text: str) -> list[str]:
    addresses = [word.strip() for word in text.split(",") if word.strip()]
    for address in addresses:
        port = address.rpartition(":")[2]
        if not address.startswith(("unix:", "dns:")) and not (
            ":" in address and port.isdigit() and 0 < int(port) < 65536
        ):
            raise argparse.ArgumentTypeError(f"{address!r} is not host:port")
    if not addresses:
        raise argparse.ArgumentTypeError("an address like localhost:50051 is needed")
    return addresses


def client(args: argparse.Namespace) -> tidegate.Client:
    """Raises TidegateError for settings that cannot be used."""
    try:
        return tidegate.Client(
            args.gateway,
            api_key=os.environ.get(args.api_key_env) or None,
            tls=tidegate.TlsConfig.from_files(ca=args.ca) if args.ca else None,
        )
    except OSError as error:
        raise tidegate.TidegateError(f"cannot read {args.ca}: {error.strerror}") from error
    except ValueError as error:
        raise tidegate.TidegateError(f"the connection's settings cannot be used: {error}") from error


def told(error: Exception, args: argparse.Namespace) -> str:
    """One line for a person; where no gateway was reached, also what to do."""
    text = " ".join(str(error).split())
    # A gateway that refuses names a reason of its own; without one, nobody answered.
    if isinstance(error, tidegate.Unavailable) and error.reason == "UNAVAILABLE" and hasattr(args, "gateway"):
        return (
            f"no gateway answers at {', '.join(args.gateway)}: start one with `tidegate up`, or name another "
            f"with --gateway ({text})"
        )
    return text


def add_request_arguments(parser: argparse.ArgumentParser) -> None:
    """What routing decides by."""
    parser.add_argument("--model", default="auto", help="model, alias or auto")
    parser.add_argument("--ttft-ms", type=float, help="budget: milliseconds to the first token")
    parser.add_argument("--tpot-ms", type=float, help="budget: milliseconds per token after it")
    parser.add_argument("--total-ms", type=float, help="budget: milliseconds in total")
    parser.add_argument("--min-p-good", type=float, help="least probability of a good answer, 0 to 1")
    parser.add_argument(
        "--placement",
        choices=[p.value for p in tidegate.Placement],
        default="any",
        help="tier to answer (default any)",
    )
    parser.add_argument("--data-class", default="", help="label that limits where the request may go")
    parser.add_argument("--max-tokens", type=int, default=256, help="longest answer in tokens")
    parser.add_argument("--reject", action="store_true", help="refuse rather than miss the budget")


def budget(args: argparse.Namespace) -> tidegate.Budget:
    return tidegate.Budget(ttft_ms=args.ttft_ms, tpot_ms=args.tpot_ms, total_ms=args.total_ms)


def on_miss(args: argparse.Namespace) -> tidegate.OnMiss:
    return tidegate.OnMiss.REJECT if args.reject else tidegate.OnMiss.BEST_EFFORT
