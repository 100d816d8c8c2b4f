"""Acts c, d and e: a node killed under load, restricted data without a home, gateway and store gone."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from typing import Any

import tidegate
from tidegate_cli.demo.asking import Asked, ask
from tidegate_cli.demo.report import Act, Stage
from tidegate_cli.render import ms
from tidegate_cli.stack import LocalFleet
from tidegate_cli.stack.fleet import CLOUD, EDGES, ONCE, together

WHOLE_AGAIN_S = 5.0
# Twice the slots of both edge nodes: however they are shared out, some wait on one of them. No more than one
# node alone can hold.
ASKED_AT_ONCE = 16
MAX_TOKENS = 128
FIRST_TOKEN_S = 30.0
ANSWER_S = 60.0
SHOWN_IN_AUDIT = ("data_class", "decision", "node", "tier")


def kill_act() -> Act:
    title = "c. kill -9 of an edge node with requests running and queued"
    return Act("kill", title, ("requests", "count", "outcome"))


async def play_kill(stage: Stage, act: Act) -> None:
    async with tidegate.Client(stage.fleet.address, retry=ONCE) as client:
        started_s = time.monotonic()
        asking, begun = _ask_many(client, stage)
        victim = await _most_loaded(client, begun)
        stage.say(f"  killing {victim}")
        killed_ms = (time.monotonic() - started_s) * 1000
        stage.fleet.children[victim].kill()
        back = asyncio.create_task(_bring_back(stage.fleet, victim))
        asked = await asyncio.gather(*asking)
        back_s = await back
    answered = [a for a in asked if a.completion is not None]
    waiting = [a for a in answered if a.ttft_ms is not None and a.ttft_ms > killed_ms]
    undisturbed = [a for a in answered if a not in waiting]
    broken = [a for a in asked if a.error is not None and a.tokens > 0]
    lost = [a for a in asked if a.error is not None and a.tokens == 0]
    act.row("without a token yet, on the node or in the queue", str(len(waiting)), "answered in full")
    act.row("running on the killed node", str(len(broken)), _causes(broken))
    act.row("answering on other nodes", str(len(undisturbed)), "not disturbed")
    act.row("lost before a token", str(len(lost)), _causes(lost))
    act.check("requests without a token were answered all the same", bool(waiting) and not lost)
    act.check(
        "running ones ended with an error that names the cause",
        bool(broken) and all(a.error is not None and a.error.reason == "NODE_LOST" for a in broken),
    )
    act.check(f"its return was noticed {back_s:.1f} s after it was ready", back_s <= WHOLE_AGAIN_S)


async def _most_loaded(client: tidegate.Client, begun: set[str]) -> str:
    """An edge node that answers and has no slot free, so that requests wait; else the most loaded."""
    until_s = time.monotonic() + FIRST_TOKEN_S
    while True:
        await asyncio.sleep(0.01)
        edges = [n for n in await client.nodes() if n.name in EDGES]
        over, victim = max((n.running + n.queued - n.slots, n.name) for n in edges)
        if (over >= 0 and victim in begun) or time.monotonic() > until_s:
            return victim


def _ask_many(client: tidegate.Client, stage: Stage) -> tuple[list[asyncio.Task[Asked]], set[str]]:
    """The requests, and the nodes that have given a token."""
    begun: set[str] = set()

    def one(index: int) -> asyncio.Task[Asked]:
        coming = ask(
            client,
            stage.prompt(index),
            begun.add,
            placement=tidegate.Placement.EDGE,
            max_tokens=MAX_TOKENS,
            deadline_s=ANSWER_S,
        )
        return asyncio.create_task(coming)

    return [one(i) for i in range(ASKED_AT_ONCE)], begun


async def _bring_back(fleet: LocalFleet, victim: str) -> float:
    """Seconds from the daemon's readiness to the gateway having it ready."""
    await fleet.start_edge(victim)
    return await fleet.wait_whole()


def _causes(asked: list[Asked]) -> str:
    reasons = sorted({a.error.reason for a in asked if a.error is not None})
    return ("error " + ", ".join(reasons)) if reasons else "-"


def restricted_act() -> Act:
    title = "d. Restricted data while every edge node is dead"
    return Act("restricted", title, ("request", "outcome", "reason"))


async def play_restricted(stage: Stage, act: Act) -> None:
    """Refused, and never sent to the cloud."""
    fleet = stage.fleet
    for name in EDGES:
        fleet.children[name].kill()
    await fleet.wait_ready_nodes({CLOUD}, 10.0)
    async with tidegate.Client(fleet.address, retry=ONCE) as client:
        asked = [await ask(client, stage.prompt(i), data_class="restricted", max_tokens=8) for i in range(3)]
        free = await ask(client, stage.prompt(0), max_tokens=8)
    for a in asked:
        act.row("restricted", "answered" if a.completion else "refused", a.error.reason if a.error else "-")
    act.row("without a class", f"answered by {free.node}" if free.completion else "refused", "-")
    audit = [
        line
        for line in _log_lines(fleet, "gateway")
        if line.get("data_class") == "restricted" and "decision" in line
    ]
    if audit:
        shown = {k: audit[-1][k] for k in SHOWN_IN_AUDIT if k in audit[-1]}
        act.row("audit line", json.dumps(shown), "-")
    act.check("refused while the cloud node was there", all(a.completion is None for a in asked))
    act.check("the cloud node itself was well", free.completion is not None)
    sent = [line for line in audit if line.get("tier") == "cloud"]
    act.check(f"{len(audit)} audited decisions, none to the cloud", bool(audit) and not sent)
    await together(*(fleet.start_edge(name) for name in EDGES))
    await fleet.wait_whole()


def _log_lines(fleet: LocalFleet, name: str) -> list[dict[str, Any]]:
    lines = []
    for line in fleet.children[name].log_file.read_text(errors="replace").splitlines():
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict):
            lines.append(value)
    return lines


def offline_act() -> Act:
    return Act("offline", "e. Gateway and Redis stopped", ("what", "outcome"))


async def play_offline(stage: Stage, act: Act) -> None:
    """The device serves by itself; both back: the fleet is whole within 5 s."""
    fleet = stage.fleet
    for name in ("gateway", "redis"):
        fleet.children[name].kill()
    port = fleet.options.ports.edge_a
    text = await asyncio.to_thread(_ask_device, port, stage.prompt(0))
    act.row(f"the device's own API on port {port}", "answered" if text else "no answer")
    act.check("the device still answers by itself", bool(text))
    await together(fleet.start_redis(), fleet.start_gateway("tidegate"))
    whole_s = await fleet.wait_whole()
    act.row("gateway and Redis back", f"all nodes ready after {whole_s:.1f} s")
    act.check(f"the fleet is whole within {WHOLE_AGAIN_S:.0f} s", whole_s <= WHOLE_AGAIN_S)
    async with tidegate.Client(fleet.address) as client:
        asked = await ask(client, stage.prompt(0), max_tokens=8)
    outcome = f"answered by {asked.node}, TTFT {ms(asked.ttft_ms)}" if asked.completion else str(asked.error)
    act.row("a request through the gateway", outcome)
    act.check("and requests are answered again", asked.completion is not None)


def _ask_device(port: int, prompt: str) -> bool:
    """One chat completion over plain HTTP, as any OpenAI client would: was it answered?"""
    body = json.dumps({"model": "auto", "max_tokens": 8, "messages": [{"role": "user", "content": prompt}]})
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        data=body.encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            answer = json.load(response)
    except (OSError, ValueError):
        return False
    return int(answer["usage"]["completion_tokens"]) > 0
