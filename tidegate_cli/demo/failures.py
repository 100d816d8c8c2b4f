"""Acts c, d and e: a node killed under load, restricted data without a home, gateway and store gone."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from typing import Any

import tidegate
from tidegate_cli.demo.asking import Asked, ask
from tidegate_cli.demo.report import Act
from tidegate_cli.render import ms
from tidegate_cli.stack import LocalFleet
from tidegate_cli.stack.fleet import CLOUD, EDGES

WHOLE_AGAIN_S = 5.0
VICTIM = "edge-a"


async def kill_act(fleet: LocalFleet, prompts: list[str]) -> Act:
    """`kill -9` of an edge daemon with requests queued and running."""
    act = Act(
        "kill", f"c. kill -9 of {VICTIM} with requests running and queued", ("requests", "count", "outcome")
    )
    async with tidegate.Client(fleet.address, retry=tidegate.RetryPolicy(attempts=1)) as client:
        # More than both edges' slots, so that some wait on each of them.
        asking = [
            asyncio.create_task(
                ask(
                    client,
                    prompts[i % len(prompts)],
                    placement=tidegate.Placement.EDGE,
                    max_tokens=200,
                    deadline_s=60.0,
                )
            )
            for i in range(16)
        ]
        await _until_busy(client)
        fleet.children[VICTIM].kill()
        asked = await asyncio.gather(*asking)
    retried = [a for a in asked if a.completion is not None and a.completion.attempts > 1]
    undisturbed = [a for a in asked if a.completion is not None and a.completion.attempts == 1]
    broken = [a for a in asked if a.error is not None and a.tokens > 0]
    lost = [a for a in asked if a.error is not None and a.tokens == 0]
    act.row("without a token yet, answered by another node", str(len(retried)), "answered in full")
    act.row("running on the killed node", str(len(broken)), _causes(broken))
    act.row("on other nodes", str(len(undisturbed)), "not disturbed")
    act.row("lost before a token", str(len(lost)), _causes(lost))
    act.check("requests without a token were answered elsewhere", bool(retried) and not lost)
    act.check(
        "running ones ended with an error that names the cause",
        bool(broken) and all(a.error is not None and a.error.reason == "NODE_LOST" for a in broken),
    )
    await fleet.start_edge(VICTIM)
    back_s = await fleet.wait_whole()
    act.check(f"its return was noticed {back_s:.1f} s after it was ready", back_s <= WHOLE_AGAIN_S)
    return act


async def _until_busy(client: tidegate.Client) -> None:
    """Until the victim runs some and holds more in its queue."""
    for _ in range(100):
        for node in await client.nodes():
            if node.name == VICTIM and node.running > 0 and node.queued > 0:
                return
        await asyncio.sleep(0.05)


def _causes(asked: list[Asked]) -> str:
    reasons = sorted({a.error.reason for a in asked if a.error is not None})
    return ("error " + ", ".join(reasons)) if reasons else "-"


async def restricted_act(fleet: LocalFleet, prompts: list[str]) -> Act:
    """Restricted data with every edge killed: refused, and never sent to the cloud."""
    act = Act(
        "restricted", "d. Restricted data while every edge node is dead", ("request", "outcome", "reason")
    )
    for name in EDGES:
        fleet.children[name].kill()
    await fleet.wait_ready_nodes({CLOUD}, 10.0)
    async with tidegate.Client(fleet.address, retry=tidegate.RetryPolicy(attempts=1)) as client:
        asked = [await ask(client, p, data_class="restricted", max_tokens=8) for p in prompts[:3]]
        free = await ask(client, prompts[0], max_tokens=8)
    for a in asked:
        act.row("restricted", "answered" if a.completion else "refused", a.error.reason if a.error else "-")
    act.row("without a class", f"answered by {free.node}" if free.completion else "refused", "-")
    audit = [
        line
        for line in _log_lines(fleet, "gateway")
        if line.get("data_class") == "restricted" and "decision" in line
    ]
    if audit:
        shown = {k: audit[-1][k] for k in ("data_class", "decision", "node", "tier") if k in audit[-1]}
        act.row("audit line", json.dumps(shown), "")
    act.check("refused while the cloud node was there", all(a.completion is None for a in asked))
    act.check("the cloud node itself was well", free.completion is not None)
    sent = [line for line in audit if line.get("tier") == "cloud"]
    act.check(f"{len(audit)} audited decisions, none to the cloud", bool(audit) and not sent)
    await asyncio.gather(*(fleet.start_edge(name) for name in EDGES))
    await fleet.wait_whole()
    return act


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


async def offline_act(fleet: LocalFleet, prompts: list[str]) -> Act:
    """Gateway and Redis gone: the device serves; both back: the fleet is whole within 5 s."""
    act = Act("offline", "e. Gateway and Redis stopped", ("what", "outcome"))
    for name in ("gateway", "redis"):
        fleet.children[name].kill()
    port = fleet.options.ports.edge_a
    text = await asyncio.to_thread(_ask_device, port, prompts[0])
    act.row(f"the device's own API on port {port}", "answered" if text else "no answer")
    act.check("the device still answers by itself", bool(text))
    await asyncio.gather(fleet.start_redis(), fleet.start_gateway("tidegate"))
    whole_s = await fleet.wait_whole()
    act.row("gateway and Redis back", f"all nodes ready after {whole_s:.1f} s")
    act.check("the fleet is whole within 5 s", whole_s <= WHOLE_AGAIN_S)
    async with tidegate.Client(fleet.address) as client:
        asked = await ask(client, prompts[0], max_tokens=8)
    act.row("a request through the gateway", f"answered by {asked.node}, TTFT {ms(asked.ttft_ms)}")
    act.check("and requests are answered again", asked.completion is not None)
    return act


def _ask_device(port: int, prompt: str) -> str:
    """One chat completion over plain HTTP, as any OpenAI client would."""
    body = json.dumps({"model": "auto", "max_tokens": 8, "messages": [{"role": "user", "content": prompt}]})
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        data=body.encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            answer = json.load(response)
    except (urllib.error.URLError, TimeoutError, json.JSONDecodeError):
        return ""
    return str(answer["choices"][0]["message"]["content"])
