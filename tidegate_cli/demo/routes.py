"""Act a: where single requests go, and why."""

from __future__ import annotations

import uuid
from typing import Any

import tidegate
from tidegate_cli.demo.asking import Asked, ask
from tidegate_cli.demo.prompts import fitted
from tidegate_cli.demo.report import Act, Stage
from tidegate_cli.render import ms

HEADER = ("request", "predicted", "measured", "node", "budget", "why")
MAX_TOKENS = 16
# Another program may take the cores for a moment: a miss is shown, and asked again on a fresh prediction.
TRIES = 3
SESSION_BYTES = 1500
FOLLOW_UP_BYTES = 200


def new_act() -> Act:
    return Act("routes", "a. Each request goes where its needs are met most cheaply", HEADER)


async def play_routes(stage: Stage, act: Act) -> None:
    async with tidegate.Client(stage.fleet.address) as client:
        routes = _Routes(client, stage, act)
        await routes.warm_up()
        await routes.tight_budget()
        await routes.quality()
        await routes.second_turn()
        await routes.reject()


class _Routes:
    """Budgets and levels come from the fleet's own predictions: no prompt and no speed is special."""

    def __init__(self, client: tidegate.Client, stage: Stage, act: Act) -> None:
        self._client = client
        self._stage = stage
        self._act = act

    def _row(self, name: str, asked: Asked) -> None:
        route = asked.completion.route if asked.completion else None
        why = route.why if route else str(asked.error)
        predicted = ms(route.predicted_ttft_ms) if route else "-"
        self._act.row(name, predicted, ms(asked.ttft_ms), asked.node or "-", asked.met, why)

    async def warm_up(self) -> None:
        """A few answers per tier, so that predictions rest on work and not on the self-test alone."""
        for placement in (tidegate.Placement.EDGE, tidegate.Placement.EDGE, tidegate.Placement.CLOUD):
            await ask(self._client, self._stage.prompt(0), placement=placement, max_tokens=4)

    async def _by_tier(self, prompt: str) -> dict[tidegate.Tier, tidegate.Route]:
        """The fastest candidate of each tier for this prompt now."""
        decision = await self._client.explain(prompt, max_tokens=MAX_TOKENS)
        best: dict[tidegate.Tier, tidegate.Route] = {}
        for candidate in decision.explanation.candidates:
            known = best.get(candidate.route.tier)
            if known is None or candidate.route.predicted_ttft_ms < known.predicted_ttft_ms:
                best[candidate.route.tier] = candidate.route
        missing = {tidegate.Tier.EDGE, tidegate.Tier.CLOUD} - best.keys()
        if missing:
            raise tidegate.TidegateError(f"no candidate of tier {', '.join(t.value for t in missing)}")
        return best

    async def tight_budget(self) -> None:
        prompt = self._stage.prompt(1)
        asked: Asked | None = None
        for _ in range(TRIES):
            best = await self._by_tier(prompt)
            budget_ms = 3 * best[tidegate.Tier.EDGE].predicted_ttft_ms + 50
            budget = tidegate.Budget(ttft_ms=budget_ms)
            asked = await ask(self._client, prompt, max_tokens=MAX_TOKENS, budget=budget)
            self._row(f"TTFT within {budget_ms:.0f} ms", asked)
            if asked.met == "met":
                break
        held = asked is not None and asked.tier == "edge" and asked.met == "met"
        self._act.check("a tight budget is met on an edge node", held)

    async def quality(self) -> None:
        prompt = self._stage.prompt(10)
        best = await self._by_tier(prompt)
        edge, cloud = best[tidegate.Tier.EDGE], best[tidegate.Tier.CLOUD]
        level = ((edge.p_good or 0.0) + (cloud.p_good or 0.0)) / 2
        loose = tidegate.Budget(ttft_ms=20 * cloud.predicted_ttft_ms)
        asked = await ask(self._client, prompt, max_tokens=MAX_TOKENS, min_p_good=level, budget=loose)
        self._row(f"P(good) at least {level:.2f}, loose budget", asked)
        self._act.check("a higher quality level goes to the cloud node", asked.tier == "cloud")

    async def second_turn(self) -> None:
        # As many prompts as make a history worth keeping warm; a name no earlier one had makes it new.
        name = uuid.uuid4().hex
        text = " ".join(self._stage.prompt(i) for i in range(SESSION_BYTES // 2))
        notes = fitted(f"{name}: keep these notes in mind. {text}", SESSION_BYTES)
        messages = [tidegate.Message(tidegate.Role.USER, notes)]
        options: dict[str, Any] = {"session_id": name, "max_tokens": MAX_TOKENS, "temperature": 0.0}
        first = await ask(self._client, messages, **options)
        self._row("session, first turn", first)
        if first.completion is None:
            self._act.check("the first turn is answered", False)
            return
        messages.append(tidegate.Message(tidegate.Role.ASSISTANT, first.completion.text or "Yes."))
        messages.append(tidegate.Message(tidegate.Role.USER, fitted(self._stage.prompt(0), FOLLOW_UP_BYTES)))
        second = await ask(self._client, messages, **options)
        self._row("session, second turn", second)
        cached = second.completion.usage.cached_tokens if second.completion else 0
        self._act.check("the second turn goes to the node that holds its prefix", second.node == first.node)
        faster = (second.ttft_ms or 1e9) < 0.7 * (first.ttft_ms or 0)
        self._act.check(
            f"{cached} warm tokens show in its TTFT ({ms(first.ttft_ms)} -> {ms(second.ttft_ms)})",
            cached > 0 and faster,
        )

    async def reject(self) -> None:
        prompt = self._stage.prompt(2)
        limit_ms, name = 1.0, "TTFT within 1 ms or not at all"
        options: dict[str, Any] = {"max_tokens": MAX_TOKENS, "on_miss": tidegate.OnMiss.REJECT}
        for tries in range(1 + TRIES):
            asked = await ask(self._client, prompt, budget=tidegate.Budget(ttft_ms=limit_ms), **options)
            self._row(name, asked)
            refused = asked.error if isinstance(asked.error, tidegate.BudgetUnmeetable) else None
            if tries == 0:
                claim = "a budget nobody can meet is refused before any work"
                self._act.check(claim, refused is not None and asked.tokens == 0)
            if refused is None:
                break
            limit_ms = 1.5 * float(refused.details["meetable_ttft_ms"])
            name = f"the same within {limit_ms:.0f} ms"
        self._act.check("raised past the printed prediction, it is answered", asked.completion is not None)
