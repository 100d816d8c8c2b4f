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
from datetime import UTC, datetime
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from simulator.fleet import FleetSpec, Slo
from simulator.tables import BadInput
from tidegate.routing.prefix import NAMED_BLOCKS

MAX_TOKENS = 1024
AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
# A block of a Mooncake trace, and of the names that routing goes by.
TRACE_BLOCK_TOKENS, NAME_TOKENS = 512, 128
# As many blocks of a prompt have names in a gateway.
MAX_NAMES = NAMED_BLOCKS
# Beyond these a line is wrong and not large: tokens of a request, ms since any epoch, the number of a block
# (its parts have names of 16 bytes).
MOST_TOKENS, MOST_MS, MOST_BLOCK = 10_000_000, 10**15, 2**64
# About 30 years: a moment in another unit or of another epoch, and a run that would never end.
MOST_SPAN_S = 1e9
MOST_MADE_UP = 10_000_000


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
    """An Azure CSV, a Mooncake JSONL, or `synthetic:RATE:SECONDS`, in order of time. Raises BadInput.

    `limit`: the first so many of the file, in whatever order it has them.
    """
    if source.startswith("synthetic:"):
        rate, seconds = _rate_and_seconds(source)
        if min(rate * seconds, math.inf if limit is None else limit) > MOST_MADE_UP:
            raise BadInput(f"{source}: more than {MOST_MADE_UP} requests")
        found = list(islice(_synthetic(rate, seconds), limit))
    else:
        try:
            with Path(source).open(encoding="utf-8-sig", newline="") as file:
                lines = _mooncake(file) if source.endswith(".jsonl") else _azure(file)
                found = list(islice(lines, limit))
        except BadInput as error:
            raise BadInput(f"{source}: {error}") from error
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text in UTF-8"
            raise BadInput(f"{source}: {reason}") from error
    if not found:
        raise BadInput(f"{source}: no requests")
    found.sort(key=attrgetter("at_s"))
    return found


def draw(
    recorded: list[Recorded],
    fleet: FleetSpec,
    *,
    seed: int,
    rate: float | None = None,
    max_tokens: int = MAX_TOKENS,
) -> list[Arrival]:
    """`rate` stretches time so that this many requests come per second on average.

    `recorded` is in order of time. Raises BadInput where it takes too long to be played.
    """
    rng = random.Random(seed)
    first_s = recorded[0].at_s
    span_s = recorded[-1].at_s - first_s
    scale = 1.0 if rate is None or span_s <= 0.0 else (len(recorded) - 1) / span_s / rate
    if span_s * scale > MOST_SPAN_S:
        raise BadInput(
            f"the requests come within {span_s * scale:.3g} s; at most {MOST_SPAN_S:.0e} are played"
        )
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
    try:
        missing = [name for name in AZURE_COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            raise BadInput(
                f"a CSV trace has the columns {', '.join(AZURE_COLUMNS)}; missing: {', '.join(missing)}"
            )
        for row in rows:
            yield _azure_row(rows.line_num, row)
    except csv.Error as error:
        raise BadInput(f"line {rows.reader.line_num}: {error}") from error


def _azure_row(number: int, row: dict[str, Any]) -> Recorded:
    try:
        at = datetime.fromisoformat(row["TIMESTAMP"])
        prompt, output = int(row["ContextTokens"]), int(row["GeneratedTokens"])
    except (ValueError, TypeError) as error:
        raise BadInput(f"line {number}: a date and two whole numbers are needed") from error
    return Recorded(
        # A moment without a zone must be the same wherever a trace is played.
        (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp(),
        _whole(number, "ContextTokens", prompt),
        _whole(number, "GeneratedTokens", output),
    )


def _mooncake(lines: Iterator[str]) -> Iterator[Recorded]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _mooncake_row(number, line)


def _mooncake_row(number: int, line: str) -> Recorded:
    try:
        row = json.loads(line)
        at_ms, prompt, output = row["timestamp"], row["input_length"], row["output_length"]
        blocks = list(row["hash_ids"])
    except KeyError as error:
        raise BadInput(f"line {number}: {error.args[0]} is missing") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise BadInput(
            f"line {number}: JSON with timestamp, input_length, output_length and hash_ids is needed"
        ) from error
    if isinstance(at_ms, bool) or not isinstance(at_ms, int | float) or not -MOST_MS <= at_ms <= MOST_MS:
        raise BadInput(f"line {number}: timestamp must be a number of ms, at most {MOST_MS} from 0")
    return Recorded(
        at_ms / 1000,
        _whole(number, "input_length", prompt),
        _whole(number, "output_length", output),
        tuple(_whole(number, "hash_ids", block, MOST_BLOCK) for block in blocks),
    )


def _whole(number: int, key: str, value: Any, most: int = MOST_TOKENS) -> int:
    """`value` of a line. Some writers say whole numbers as 12.0; 0 tokens are in traces and count as 1."""
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or not 0 <= value <= most:
        raise BadInput(f"line {number}: {key} must be whole and from 0 to {most}")
    return int(value)


def _synthetic(rate: float, seconds: float) -> Iterator[Recorded]:
    """Poisson arrivals with lognormal lengths, about those of a chat."""
    rng = random.Random(7)
    at_s = 0.0
    while (at_s := at_s + rng.expovariate(rate)) < seconds:
        prompt = min(int(rng.lognormvariate(6.2, 1.0)) + 1, 7000)
        yield Recorded(at_s, prompt, min(int(rng.lognormvariate(4.8, 0.8)) + 1, MAX_TOKENS))
