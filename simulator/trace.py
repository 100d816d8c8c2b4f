"""What arrives when: recorded or made up, with everything random about a request drawn once.

All policies see the same requests, so that they differ by their choices alone (common random numbers).
"""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from simulator.fleet import FleetSpec, Slo
from simulator.tables import BadInput
from tidegate.routing.prefix import NAMED_BLOCKS

MAX_TOKENS = 1024
AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
# A block of a Mooncake trace, and of the names that routing goes by.
TRACE_BLOCK_TOKENS, NAME_TOKENS = 512, 128
# As many blocks of a prompt have names in a gateway.
MAX_NAMES = NAMED_BLOCKS


class Recorded(NamedTuple):
    """One line of a trace. `blocks` are ids of 512-token prefix blocks."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Arrival:
    """One request. `hardness` is true, `seen` what routing sees; the z are standard normal."""

    number: int
    at_s: float
    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    slo: Slo
    hardness: float
    seen: float
    required: bool
    speed_z: float
    rtt_z: float
    names: tuple[bytes, ...] = ()


def read_trace(source: str, limit: int | None = None) -> list[Recorded]:
    """An Azure CSV, a Mooncake JSONL, or `synthetic:RATE:SECONDS`. Raises BadInput."""
    if source.startswith("synthetic:"):
        found = list(islice(_synthetic(*_rate_and_seconds(source)), limit))
    else:
        try:
            with Path(source).open(encoding="utf-8", newline="") as file:
                lines = _mooncake(file) if source.endswith(".jsonl") else _azure(file)
                found = list(islice(lines, limit))
        except BadInput as error:
            raise BadInput(f"{source}: {error}") from error
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text in UTF-8"
            raise BadInput(f"{source}: {reason}") from error
    if not found:
        raise BadInput(f"{source}: no requests")
    return found


def draw(
    recorded: list[Recorded],
    fleet: FleetSpec,
    *,
    seed: int,
    rate: float | None = None,
    max_tokens: int = MAX_TOKENS,
) -> list[Arrival]:
    """`rate` stretches time so that this many requests come per second on average."""
    rng = random.Random(seed)
    first_s = recorded[0].at_s
    span_s = recorded[-1].at_s - first_s
    scale = 1.0 if rate is None or span_s <= 0.0 else (len(recorded) - 1) / span_s / rate
    slos, shares = list(fleet.slos), [s.share for s in fleet.slos]
    arrivals = []
    for number, r in enumerate(recorded):
        hardness = rng.random()
        arrivals.append(
            Arrival(
                number=number,
                at_s=(r.at_s - first_s) * scale,
                prompt_tokens=max(r.prompt_tokens, 1),
                output_tokens=min(max(r.output_tokens, 1), max_tokens),
                max_tokens=max_tokens,
                slo=rng.choices(slos, shares)[0],
                hardness=hardness,
                seen=hardness + fleet.seen_noise * rng.gauss(0.0, 1.0),
                required=rng.random() < fleet.required_share,
                speed_z=rng.gauss(0.0, 1.0),
                rtt_z=rng.gauss(0.0, 1.0),
                names=_names(r),
            )
        )
    return arrivals


def _names(recorded: Recorded) -> tuple[bytes, ...]:
    """Each block of the trace is as many of ours as fit into it; the last one counts as far as it is full."""
    full = recorded.prompt_tokens // NAME_TOKENS
    parts = TRACE_BLOCK_TOKENS // NAME_TOKENS
    names = ((block * parts + part).to_bytes(16, "big") for block in recorded.blocks for part in range(parts))
    return tuple(islice(names, full))


def _rate_and_seconds(source: str) -> tuple[float, float]:
    try:
        rate, seconds = map(float, source.removeprefix("synthetic:").split(":"))
    except ValueError:
        rate = seconds = 0.0
    if not (0.0 < rate < math.inf and 0.0 < seconds < math.inf):
        raise BadInput(f"{source}: write synthetic:RATE:SECONDS, both above 0, like synthetic:2:600")
    return rate, seconds


def _azure(lines: Iterator[str]) -> Iterator[Recorded]:
    rows = csv.DictReader(lines)
    missing = [name for name in AZURE_COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise BadInput(
            f"a CSV trace has the columns {', '.join(AZURE_COLUMNS)}; missing: {', '.join(missing)}"
        )
    for row in rows:
        try:
            at = datetime.fromisoformat(row["TIMESTAMP"][:26])
            found = Recorded(at.timestamp(), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
        except (ValueError, TypeError) as error:
            raise BadInput(f"line {rows.line_num}: a date and two whole numbers are needed") from error
        yield found


def _mooncake(lines: Iterator[str]) -> Iterator[Recorded]:
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            found = Recorded(
                row["timestamp"] / 1000,
                int(row["input_length"]),
                int(row["output_length"]),
                tuple(map(int, row["hash_ids"])),
            )
        except KeyError as error:
            raise BadInput(f"line {number}: {error.args[0]} is missing") from error
        except (ValueError, TypeError) as error:
            raise BadInput(
                f"line {number}: JSON with timestamp, input_length, output_length and hash_ids is needed"
            ) from error
        yield found


def _synthetic(rate: float, seconds: float) -> Iterator[Recorded]:
    """Poisson arrivals with lognormal lengths, about those of a chat."""
    rng = random.Random(7)
    at_s = 0.0
    while (at_s := at_s + rng.expovariate(rate)) < seconds:
        prompt = min(int(rng.lognormvariate(6.2, 1.0)) + 1, 7000)
        yield Recorded(at_s, prompt, min(int(rng.lognormvariate(4.8, 0.8)) + 1, MAX_TOKENS))
