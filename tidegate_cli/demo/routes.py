"""Act a: where single requests go, and why."""

from __future__ import annotations

import uuid

import tidegate
from tidegate_cli.demo.asking import Asked, ask
from tidegate_cli.demo.report import Act
from tidegate_cli.render import ms

HEADER = ("request", "predicted", "measured", "node", "budget", "why")
MAX_TOKENS = 16


class RoutesAct:
    """Budgets and levels come from the fleet's own predictions: no prompt and no speed is special."""

    def __init__(self, client: tidegate.Client, prompts: list[str]) -> None:
        self._client = client
        self._prompts = prompts
        self._act = Act("routes", "a. Each request goes where its needs are met most cheaply", HEADER)

    async def run(self) -> Act:
        await self._warm_up()
        await self._tight_budget()
        await self._quality()
        await self._second_turn()
        await self._reject()
        return self._act

    def _row(self, name: str, asked: Asked) -> None:
        route = asked.completion.route if asked.completion else None
        why = route.why if route else str(asked.error)
        predicted = ms(route.predicted_ttft_ms) if route else "-"
        self._act.row(name, predicted, ms(asked.ttft_ms), asked.node or "-", asked.met, why[:110])

    async def _warm_up(self) -> None:
        """One answer per tier, so that predictions rest on work and not on the self-test alone."""
        for placement in (tidegate.Placement.EDGE, tidegate.Placement.EDGE, tidegate.Placement.CLOUD):
            await ask(self._client, self._prompts[0], placement=placement, max_tokens=4)

    async def _by_tier(self, prompt: str) -> dict[tidegate.Tier, tidegate.Route]:
        """The best candidate of each tier for this prompt now."""
        decision = await self._client.explain(prompt, max_tokens=MAX_TOKENS)
        best: dict[tidegate.Tier, tidegate.Route] = {}
        for candidate in decision.explanation.candidates:
            known = best.get(candidate.route.tier)
            if known is None or candidate.route.predicted_ttft_ms < known.predicted_ttft_ms:
                best[candidate.route.tier] = candidate.route
        return best

    async def _tight_budget(self) -> None:
        prompt = self._prompts[1 % len(self._prompts)]
        best = await self._by_tier(prompt)
        budget_ms = 3 * best[tidegate.Tier.EDGE].predicted_ttft_ms + 50
        asked = await ask(
            self._client, prompt, max_tokens=MAX_TOKENS, budget=tidegate.Budget(ttft_ms=budget_ms)
        )
        self._row(f"TTFT within {budget_ms:.0f} ms", asked)
        self._act.check("a tight budget is met on an edge node", asked.tier == "edge" and asked.met == "met")

    async def _quality(self) -> None:
        prompt = self._prompts[10 % len(self._prompts)]
        best = await self._by_tier(prompt)
        edge, cloud = best[tidegate.Tier.EDGE], best[tidegate.Tier.CLOUD]
        level = round((edge.p_good + cloud.p_good) / 2, 3)
        asked = await ask(
            self._client,
            prompt,
            max_tokens=MAX_TOKENS,
            min_p_good=level,
            budget=tidegate.Budget(ttft_ms=20 * cloud.predicted_ttft_ms),
        )
        self._row(f"P(good) at least {level:.2f}, loose budget", asked)
        self._act.check("a higher quality level goes to the cloud node", asked.tier == "cloud")

    async def _second_turn(self) -> None:
        session = str(uuid.uuid4())
        text = " ".join(self._prompts * (1 + 1500 // sum(map(len, self._prompts))))[:1500]
        messages = [tidegate.Message(tidegate.Role.USER, f"Keep these notes in mind: {text}")]
        options = {"session_id": session, "max_tokens": MAX_TOKENS, "temperature": 0.0}
        first = await ask(self._client, messages, **options)
        self._row("session, first turn", first)
        if first.completion is None:
            self._act.check("the first turn is answered", False)
            return
        messages.append(tidegate.Message(tidegate.Role.ASSISTANT, first.completion.text))
        messages.append(tidegate.Message(tidegate.Role.USER, self._prompts[0]))
        second = await ask(self._client, messages, **options)
        self._row("session, second turn", second)
        cached = second.completion.usage.cached_tokens if second.completion else 0
        self._act.check("the second turn goes to the node that holds its prefix", second.node == first.node)
        faster = (second.ttft_ms or 1e9) < 0.7 * (first.ttft_ms or 0)
        self._act.check(
            f"{cached} warm tokens show in its TTFT ({ms(first.ttft_ms)} -> {ms(second.ttft_ms)})",
            cached > 0 and faster,
        )

    async def _reject(self) -> None:
        prompt = self._prompts[2 % len(self._prompts)]
        reject = {"max_tokens": MAX_TOKENS, "on_miss": tidegate.OnMiss.REJECT}
        asked = await ask(self._client, prompt, budget=tidegate.Budget(ttft_ms=1.0), **reject)
        self._row("TTFT within 1 ms or not at all", asked)
        refused = isinstance(asked.error, tidegate.BudgetUnmeetable)
        self._act.check("a budget nobody can meet is refused before any work", refused and asked.tokens == 0)
        if not refused or asked.error is None:
            return
        limit_ms = 1.5 * float(asked.error.details["meetable_ttft_ms"])
        again = await ask(self._client, prompt, budget=tidegate.Budget(ttft_ms=limit_ms), **reject)
        self._row(f"the same within {limit_ms:.0f} ms", again)
        self._act.check("raised past the printed prediction, it is answered", again.completion is not None)
