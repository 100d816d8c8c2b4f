"""Whether warm prefixes are found again and what a hot one costs: the real routing code in the simulator.

Eight equal nodes tell a gateway what their caches hold and drop, as engines do.

*Trace*: the conversation trace of Mooncake (FAST'25, Apache-2.0; DATA is the folder with `traces/`) at the
speed it was recorded. The reference is ONE cache that drops the least recently used block, as large as all
eight together, with every prompt in it at once: it has no nodes to choose and no load to spread.

*Hot prefix*: most requests begin with the same 4,096 tokens and come three times as fast as one node can
answer them while these are warm, a fifth are prompts that nobody shares. Alone and with caches so small that
the others' prompts drive the hot one out. Load-only routing is the better of two: fewest requests as a
gateway knows them, and least load per slot as the nodes truly are. The control follows the prefix without
regard to load: it must fail.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from benchmarks.common import CannotMeasure, Row, percentile, row, run
from benchmarks.pieces import Piece, Pieces
from simulator.fleet import FleetSpec, parse_fleet
from simulator.run import Simulation
from simulator.tables import BadInput
from simulator.trace import NAME_TOKENS, Arrival, Recorded, draw, read_trace
from tidegate.routing.baselines import LeastOutstanding
from tidegate.routing.domain import RouteQuery, Snapshot
from tidegate.routing.latency import LatencyModel
from tidegate.routing.plan import Pick, Plan, Refusal
from tidegate.routing.policy import Policy, Random, Tidegate, score
from tidegate.routing.quality import QualityModel
from tidegate.routing.refusing import no_candidate

TRACE = "traces/mooncake_conversation_first_half.jsonl"
NODES = 8
# Of one node, in tokens.
CACHES = (500_000, 1_000_000, 2_000_000)
OF_ONE_CACHE = 0.90
# A cache for the hot prefix with room to spare, and one that the others' prompts fill every few seconds.
ROOMY, TIGHT = 500_000, 12_288
HOT_TOKENS, HOT_TAIL, HOT_ANSWER, COLD_TOKENS = 4096, 128, 64, 2048
HOT_SHARE, TIMES_CAPACITY, HOT_REQUESTS = 0.8, 3.0, 6_000
WARM_UP = 500
# What requests ask for; of the trace as its authors do.
TRACE_TTFT_MS, HOT_TTFT_MS = 30_000.0, 2_000.0
TIMES_LOAD_ONLY, LEAST_HITS = 1.5, 0.60


class Sticky:
    """The control: the longest known prefix, whatever its node has to do."""

    name = "sticky"

    def route(
        self,
        snapshot: Snapshot,
        query: RouteQuery,
        model: LatencyModel,
        rng: Random,
        quality: QualityModel | None = None,
    ) -> Plan | Refusal:
        choices, removed = score(snapshot, query, model, quality)
        if not choices:
            return no_candidate(query, removed)
        warmest = max(c.prediction.cached_tokens for c in choices)
        ties = [c for c in choices if c.prediction.cached_tokens == warmest]
        # The first of those that hold it, so that it stays where it is; who holds nothing goes anywhere.
        chosen = ties[0] if warmest else ties[int(rng() * len(ties))]
        return Plan((chosen,), query, Pick.BASELINE, removed, len(choices), self.name)


@dataclass(frozen=True, slots=True)
class Run:
    """Of the counted requests; `hit_rate` is in tokens of those that begin with the hot prefix."""

    hit_rate: float
    p99_ms: float
    requests: int
    answered: int


def fleet(cache_tokens: int, ttft_ms: float = TRACE_TTFT_MS) -> FleetSpec:
    node = {
        "name": "node",
        "count": NODES,
        "tier": "cloud",
        "variant": "large",
        "slots": 32,
        "context_tokens": 1 << 18,
        "prefill_tps": 8000.0,
        "prefill_chunk": 2048,
        "decode_tps": [[1, 60.0], [8, 50.0], [16, 40.0], [32, 30.0]],
        "cache_tokens": cache_tokens,
        "rtt_ms": [5.0, 1.0],
        "speed_noise": 0.2,
    }
    slo = {"name": "all", "share": 1.0, "ttft_ms": ttft_ms}
    return parse_fleet({"version": 1, "node": [node], "slo": [slo]})


def one_cache(prompts: Sequence[tuple[int, Sequence[bytes]]], tokens: int) -> float:
    """Share of all prompt tokens found in one LRU cache; a prompt is its tokens and its blocks' names."""
    blocks: OrderedDict[bytes, None] = OrderedDict()
    hits = 0
    for prompt_tokens, names in prompts:
        count = 0
        for name in names:
            if name not in blocks:
                break
            count += 1
        hits += min(count * NAME_TOKENS, prompt_tokens - 1)
        for name in reversed(names):
            blocks[name] = None
            blocks.move_to_end(name)
        while len(blocks) > tokens // NAME_TOKENS:
            blocks.popitem(last=False)
    return hits / sum(tokens for tokens, _ in prompts)


def play(spec: FleetSpec, arrivals: Sequence[Arrival], policy: str | Policy, hot: bytes = b"") -> Run:
    """`hot` is the first block of the prompts that count; empty for all."""
    served = Simulation(spec, arrivals, policy, seed=1).run()
    counted = [
        s for s in served if not hot or (s.arrival.names[:1] == (hot,) and s.arrival.number >= WARM_UP)
    ]
    done = [s for s in counted if s.node is not None]
    hits = sum(s.cached for s in done) / sum(s.arrival.prompt_tokens for s in counted)
    return Run(hits, percentile([s.ttft_s * 1000 for s in counted], 0.99), len(counted), len(done))


def hot_capacity(spec: FleetSpec) -> float:
    """Hot requests that one node answers per second once the prefix is warm there."""
    one = FleetSpec(nodes=spec.nodes[:1], slos=spec.slos)
    recorded = [_hot(0.0 if number else -60.0, number) for number in range(400)]
    served = Simulation(one, draw(recorded, one, seed=1), "round-robin", seed=1).run()
    return (len(served) - 1) / max(s.total_s for s in served[1:])


def hot_arrivals(spec: FleetSpec, count: int, rate: float) -> list[Arrival]:
    """Poisson; `rate` is of the hot ones."""
    rng = random.Random(5)
    at_s, recorded = 0.0, []
    for number in range(count):
        at_s += rng.expovariate(rate / HOT_SHARE)
        cold = Recorded(at_s, COLD_TOKENS, HOT_ANSWER, tuple(range(1000 + 8 * number, 1004 + 8 * number)))
        recorded.append(_hot(at_s, number) if rng.random() < HOT_SHARE else cold)
    return draw(recorded, spec, seed=5)


def _hot(at_s: float, number: int) -> Recorded:
    # Eight blocks that all share, one of this request alone.
    return Recorded(at_s, HOT_TOKENS + HOT_TAIL, HOT_ANSWER, (*range(8), 1007 + 8 * number))


def trace_tasks(recorded: list[Recorded]) -> dict[str, Callable[[], Piece]]:
    tasks: dict[str, Callable[[], Piece]] = {}
    for cache in CACHES:
        tasks[f"trace-{cache}"] = partial(_trace, recorded, cache)
    return tasks


def _trace(recorded: list[Recorded], cache: int) -> Piece:
    spec = fleet(cache)
    arrivals = draw(recorded, spec, seed=1, max_tokens=4096)
    one = one_cache([(a.prompt_tokens, a.names) for a in arrivals], cache * NODES)
    policies = {"tidegate": "tidegate", "load-only": "load-per-slot"}
    return {"one": one} | {name: asdict(play(spec, arrivals, policy)) for name, policy in policies.items()}


def hot_tasks() -> dict[str, Callable[[], Piece]]:
    policies: dict[str, str | Policy] = {
        "tidegate": Tidegate(),
        "gateway": LeastOutstanding(),
        "truth": "load-per-slot",
        "sticky": Sticky(),
    }
    return {
        f"hot-{name}-{cache}": partial(_hot_run, cache, policy)
        for cache in (ROOMY, TIGHT)
        for name, policy in policies.items()
    }


def _hot_run(cache: int, policy: str | Policy) -> Piece:
    spec = fleet(cache, HOT_TTFT_MS)
    capacity = hot_capacity(fleet(ROOMY))
    arrivals = hot_arrivals(spec, HOT_REQUESTS, TIMES_CAPACITY * capacity)
    hot = next(a.names[0] for a in arrivals if a.prompt_tokens > HOT_TOKENS)
    return {"capacity": capacity, **asdict(play(spec, arrivals, policy, hot))}


def trace_rows(pieces: dict[str, Piece]) -> list[Row]:
    rows = []
    for cache in CACHES:
        piece = pieces[f"trace-{cache}"]
        ours, load, one = piece["tidegate"], piece["load-only"], piece["one"]
        at = f"trace, {cache * NODES / 1e6:g} M tokens"
        rows += [
            row(f"{at}: hits of one LRU cache", 100 * one, "%"),
            row(f"{at}: hits of tidegate", 100 * ours["hit_rate"], "%"),
            row(f"{at}: hits of load-only", 100 * load["hit_rate"], "%"),
            row(
                f"{at}: tidegate's of the one cache's",
                ours["hit_rate"] / one,
                "",
                bar=OF_ONE_CACHE,
                sense=">=",
            ),
            row(f"{at}: p99 TTFT of tidegate by load-only", ours["p99_ms"] / load["p99_ms"], "times"),
            row(f"{at}: unanswered", ours["requests"] - ours["answered"], "requests", bar=0),
        ]
    return rows


def hot_rows(pieces: dict[str, Piece]) -> list[Row]:
    rows = [row("hot prefix: one node's capacity", pieces[f"hot-tidegate-{ROOMY}"]["capacity"], "requests/s")]
    for cache, room in ((ROOMY, "roomy"), (TIGHT, "tight")):
        of = {name: pieces[f"hot-{name}-{cache}"] for name in ("tidegate", "gateway", "truth", "sticky")}
        load = min(of["gateway"]["p99_ms"], of["truth"]["p99_ms"])
        ours, at = of["tidegate"], f"hot prefix, {room} caches"
        rows += [
            row(f"{at}: p99 TTFT of load-only, as a gateway knows", of["gateway"]["p99_ms"], "ms"),
            row(f"{at}: p99 TTFT of load-only, as nodes are", of["truth"]["p99_ms"], "ms"),
            row(f"{at}: hits of load-only, as a gateway knows", 100 * of["gateway"]["hit_rate"], "%"),
            row(f"{at}: p99 TTFT of tidegate", ours["p99_ms"], "ms"),
            row(f"{at}: by the better load-only", ours["p99_ms"] / load, "times", bar=TIMES_LOAD_ONLY),
            row(f"{at}: hits of tidegate", 100 * ours["hit_rate"], "%", bar=100 * LEAST_HITS, sense=">="),
            row(f"{at}: unanswered", ours["requests"] - ours["answered"], "requests", bar=0),
            row(
                f"{at}: control, sticky without load, p99 by load-only",
                of["sticky"]["p99_ms"] / load,
                "times",
                bar=TIMES_LOAD_ONLY,
                sense=">=",
            ),
        ]
    return rows


async def measure(for_s: float) -> list[Row]:
    data = os.environ.get("DATA")
    if not data:
        raise CannotMeasure("set DATA to the folder that holds traces/")
    try:
        recorded = read_trace(str(Path(data) / TRACE))
    except BadInput as error:
        raise CannotMeasure(str(error)) from error
    kept = Pieces("locality", for_s=for_s, more=_own_text())
    pieces = kept.all_of(hot_tasks() | trace_tasks(recorded))
    return hot_rows(pieces) + trace_rows(pieces)


def _own_text() -> str:
    return Path(__file__).read_text(encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--for-s", type=float, default=1e9, help="begin no new piece after so many seconds")
    args = parser.parse_args(argv)
    return run("locality", lambda: measure(args.for_s))


if __name__ == "__main__":
    sys.exit(main())
