"""A dispatcher over scripted nodes, on the event loop's own time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from gateway_fakes import add_ready

from gateway.dispatch import DataClasses, Dispatcher, DispatchOptions, Levels
from gateway.dispatch.admission import Admission
from gateway.dispatch.attempt import StallLimits
from gateway.dispatch.caller import Client
from gateway.dispatch.facts import Facts
from gateway.dispatch.intake import Intake
from gateway.dispatch.line import Line
from gateway.dispatch.outcomes import Outcomes
from gateway.dispatch.resume import ResumeTokens
from gateway.state import Fleet, Sessions
from gateway.telemetry import Metrics, RequestLog
from gateway.upstream import AttemptStream, NotLinked
from tidegate.routing.admission import AdmissionLimits, AdmissionQueue
from tidegate.routing.domain import (
    Analysis,
    AttemptKey,
    Binding,
    Cause,
    ClassRule,
    Failure,
    Finish,
    FinishReason,
    FirstToken,
    GenerateEvent,
    GenerateRequest,
    Message,
    Role,
    SequenceOutput,
    Tier,
    Usage,
    Work,
)
from tidegate.routing.latency import LearnedLatency
from tidegate.routing.policy import Tidegate
from tidegate.routing.quality import RankedQuality

FLEET_SECRET = b"a secret of the fleet"
CLASSES = DataClasses(
    [("public", ClassRule()), ("internal", ClassRule()), ("restricted", ClassRule(tiers=frozenset({"edge"})))]
)
# Attempts go to the cheapest node first, so n1, then n2, then n3; the last one is in the cloud.
NODES = {
    "n1": Binding(Tier.EDGE, cost_per_mtoken=1.0),
    "n2": Binding(Tier.EDGE, cost_per_mtoken=2.0),
    "n3": Binding(Tier.CLOUD, cost_per_mtoken=3.0),
}

Step = tuple[float, Callable[[AttemptKey], SequenceOutput]]
Script = list[Step]


def token(index: int, *, finish: Finish | None = None) -> Callable[[AttemptKey], SequenceOutput]:
    stamps = (
        None
        if index
        else FirstToken(queue_ms=3.0, prefill_ms=4.0, cached_tokens=2, batch_size=1, prompt_tokens=9)
    )
    return lambda key: SequenceOutput(
        key, index, 1, (index,), f"t{index} ", first_token=stamps, finish=finish
    )


def end(
    result: FinishReason | Failure, index: int = 0, text: str = ""
) -> Callable[[AttemptKey], SequenceOutput]:
    return lambda key: SequenceOutput(key, index, text=text, finish=Finish(result, Usage(9, index, 2)))


def answer(tokens: int = 3, every_s: float = 0.1) -> Script:
    """`tokens` tokens, then the end as a message of its own."""
    steps: Script = [(every_s, token(i)) for i in range(tokens)]
    return [*steps, (0.0, end(FinishReason.STOP, tokens))]


def fails(cause: Cause, tokens: int = 0, after_s: float = 0.1) -> Script:
    return [*answer(tokens)[:-1], (after_s, end(Failure(cause, "as scripted"), tokens))]


SILENT: Script = []


@dataclass
class Nodes:
    """Implements Upstream: each attempt on a node plays that node's next script."""

    scripts: dict[str, list[Script]]
    works: list[tuple[str, Work]] = field(default_factory=list)
    cancelled: list[AttemptKey] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def open(self, node_id: str, work: Work) -> AttemptStream:
        self.works.append((node_id, work))
        if not self.scripts.get(node_id):
            raise NotLinked(node_id)
        stream = AttemptStream(
            work.key,
            work.credits,
            max_tokens=work.max_tokens,
            grant=lambda key, n: None,
            cancel=self.cancelled.append,
        )
        self.tasks.append(asyncio.create_task(self._play(stream, self.scripts[node_id].pop(0))))
        return stream

    @staticmethod
    async def _play(stream: AttemptStream, script: Script) -> None:
        for delay_s, make in script:
            await asyncio.sleep(delay_s)
            stream.put(make(stream.key))


class FixedAnalyzer:
    """Counts how often a prompt was judged."""

    def __init__(self) -> None:
        self.judged = 0

    def analyze(self, request: GenerateRequest) -> Analysis:
        return Analysis(prompt_tokens=9, difficulty_of=self._difficulty, prefix_hashes=(b"p" * 16,))

    def _difficulty(self) -> float:
        self.judged += 1
        return 0.5


class Rig:
    """Made inside a running loop. `tokens` are given out by new_token in turn."""

    def __init__(
        self,
        in_flight: int = 10,
        levels: Levels | None = None,
        limits: AdmissionLimits = AdmissionLimits(),  # noqa: B008
        outcomes: Outcomes | None = None,
        order: tuple[str, ...] = (),
        log_share: float = 0.0,
        **scripts: list[Script],
    ) -> None:
        clock = asyncio.get_running_loop().time
        self.nodes = Nodes(scripts)
        self.fleet = Fleet(clock, suspect_after_s=3600.0, lost_after_s=7200.0)
        for node_id in scripts:
            add_ready(self.fleet, node_id, NODES[node_id])
        self.sessions = Sessions(b"k" * 32, clock, stricter=CLASSES.stricter)
        self.metrics = Metrics()
        self.admission = Admission(in_flight)
        self.latency = LearnedLatency()
        self.analyzer = FixedAnalyzer()
        self.seen: list[GenerateEvent] = []
        log = RequestLog()
        self.facts = Facts(self.latency, self.metrics, log, self.fleet.mark_stalled)
        self.line = Line(AdmissionQueue(limits, self.latency), self.metrics, clock)
        self.intake = Intake(self.analyzer, self.sessions, CLASSES, levels or Levels(), clock)
        self.dispatcher = Dispatcher(
            fleet=self.fleet,
            upstream=self.nodes,
            intake=self.intake,
            sessions=self.sessions,
            classes=CLASSES,
            policy=Tidegate(),
            model=self.latency,
            facts=self.facts,
            metrics=self.metrics,
            log=log,
            admission=self.admission,
            line=self.line,
            options=DispatchOptions(
                max_attempts=3, stall=StallLimits(first_s=20.0, between_s=10.0), log_share=log_share
            ),
            clock=clock,
            rng=lambda: 0.0,
            new_token=lambda: "unguessable-token",
            resume_tokens=ResumeTokens(FLEET_SECRET),
            outcomes=outcomes,
            ranked_of=lambda snapshot: RankedQuality(snapshot, order),
        )

    async def run(self, request: GenerateRequest, client: Client = Client()) -> list[GenerateEvent]:  # noqa: B008
        """All events; what came before an error is in `seen`."""
        self.seen = []
        async for event in self.dispatcher.generate(request, client):
            self.seen.append(event)
        return self.seen

    def count(self, metric: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(metric, labels) or 0.0

    @property
    def tried(self) -> list[str]:
        return [node_id for node_id, _ in self.nodes.works]


def ask(request_id: str = "r1", **changes: object) -> GenerateRequest:
    base = GenerateRequest(request_id, messages=(Message(Role.USER, "what is a tide?"),), max_tokens=8)
    return replace(base, **changes)  # type: ignore[arg-type]
