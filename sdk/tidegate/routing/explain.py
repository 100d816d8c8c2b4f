"""Reasons as sentences and as the domain's Explanation; only called when somebody asks."""

from __future__ import annotations

import math

from tidegate.routing.domain import Budget, Candidate, Explanation, Route, RouteQuery, ServeError, is_saving
from tidegate.routing.filters import Filter
from tidegate.routing.plan import Choice, Extra, Pick, Plan, Reason, Refusal

_FILTER_WORDS = {
    "model": "without the model",
    "data_class": "outside the data class",
    "tenant": "kept for other tenants",
    "placement": "outside the placement asked for",
    "context_length": "with too small a context",
    "capability": "without a capability needed",
    "not_linked": "not linked to this gateway",
    "health": "not healthy",
    "draining": "draining",
    "excluded": "already tried",
    "battery": "sparing the battery",
    "left": "gone a moment ago",
}
_REFUSAL_WORDS = {
    Reason.NO_NODE: "no node has joined this gateway",
    Reason.MODEL_UNKNOWN: "no node serves this model",
    Reason.DATA_CLASS: "no node that this data class allows can take the request",
    Reason.NOT_PERMITTED: "no node that this request may use can take it",
    Reason.CONTEXT_LENGTH: "prompt and max_tokens exceed the context of every node that serves this model",
    Reason.CAPABILITY: "no node has the capabilities this request needs",
    Reason.NOT_LINKED: "the nodes that could answer are linked to other gateways",
    Reason.ALL_UNHEALTHY: "the nodes that could answer are not healthy",
    Reason.ALL_DRAINING: "the nodes that could answer are draining",
    Reason.ALL_TRIED: "every node that could answer was tried",
    Reason.ALL_LEFT: "the nodes that could answer have left a moment ago",
    Reason.BUDGET_UNMEETABLE: "no node is expected to meet the budget",
    Reason.QUALITY_UNMEETABLE: "no variant reaches the quality asked for",
    Reason.OVERLOADED: "every node that could answer is busy, and too many requests wait",
}


def why(plan: Plan, index: int = 0, *, judged: bool = False) -> str:
    """One sentence on why this choice stands where it does; with P(good) where a quality was asked for, or
    `judged`."""
    choice, judged = plan.choices[index], judged or plan.query.min_p_good > 0.0
    named = f", as {plan.query.named}" if plan.query.named else ""
    if index:
        return f"fallback {index}{named}: {_scores(choice, plan.query, judged)}"
    return f"{_lead(plan)}{named}: {_scores(choice, plan.query, judged)}"


def route(plan: Plan, *, judged: bool = False) -> Route:
    """Where the plan sends the request first, and why. P(good) is told where a quality was asked for, or
    `judged`: nobody else's prompt is judged, which takes longer than deciding."""
    judged = judged or plan.query.min_p_good > 0.0
    return plan.first.route(why(plan, judged=judged), judged=judged)


def explanation(plan: Plan, decision_ms: float = 0.0) -> Explanation:
    """The plan as the domain's Explanation, best first."""
    return Explanation(
        candidates=tuple(_candidate(c, why(plan, i, judged=True)) for i, c in enumerate(plan.choices)),
        filtered=dict(plan.removed),
        prompt_tokens=plan.query.analysis.prompt_tokens,
        difficulty=plan.query.analysis.difficulty,
        decision_ms=decision_ms,
    )


def _candidate(choice: Choice, sentence: str = "") -> Candidate:
    extra = choice.extra or Extra(0.0, 0.0)
    return Candidate(
        choice.route(sentence, judged=True),
        choice.qualified,
        choice.cost_per_mtoken,
        energy_per_mtoken=extra.energy,
        link_per_mtoken=extra.link,
    )


def refusal_explanation(refusal: Refusal, decision_ms: float = 0.0) -> Explanation:
    """What was looked at before the request was refused."""
    return Explanation(
        candidates=tuple(_candidate(c) for c in refusal.choices),
        filtered=dict(refusal.removed),
        prompt_tokens=refusal.query.analysis.prompt_tokens,
        difficulty=refusal.query.analysis.difficulty,
        decision_ms=decision_ms,
    )


def refusal_message(refusal: Refusal) -> str:
    """One sentence for people; names what would have worked where that is known."""
    text = _REFUSAL_WORDS[refusal.reason]
    if _telling(refusal):
        text += " (" + _removed(refusal) + ")"
    if refusal.wait_ms is not None:
        text += f"; it would wait about {refusal.wait_ms:.0f} ms for room"
    if refusal.reason is Reason.BUDGET_UNMEETABLE and refusal.meetable and refusal.best_ttft_ms is not None:
        share = f"{100 * refusal.query.target_share:.0f} %"
        text += f"; best predicted TTFT {refusal.best_ttft_ms:.0f} ms"
        text += f"; {_limits(refusal.meetable)} would be met with {share} odds"
    if refusal.reason is Reason.QUALITY_UNMEETABLE and refusal.choices:
        best = max(c.p_good for c in refusal.choices)
        text += f"; best P(good) {best:.2f}, asked {refusal.query.min_p_good:.2f}"
    return text


def refusal_error(refusal: Refusal) -> ServeError:
    """The refusal as the error of the front doors."""
    details = {f"filtered_{name}": str(count) for name, count in _telling(refusal).items()}
    if refusal.best_ttft_ms is not None:
        details["best_predicted_ttft_ms"] = f"{refusal.best_ttft_ms:.1f}"
    if refusal.best_total_ms is not None:
        details["best_predicted_total_ms"] = f"{refusal.best_total_ms:.1f}"
    if refusal.wait_ms is not None:
        details["predicted_wait_ms"] = f"{refusal.wait_ms:.1f}"
    if refusal.meetable is not None:
        for part in ("ttft_ms", "tpot_ms", "total_ms"):
            limit = getattr(refusal.meetable, part)
            if limit is not None:
                details[f"meetable_{part}"] = f"{limit:.1f}"
    return ServeError(
        refusal.code,
        refusal_message(refusal),
        reason=refusal.reason.value,
        retry_after_ms=refusal.retry_after_ms,
        details=details,
    )


def _lead(plan: Plan) -> str:
    tier = plan.first.node.binding.tier.value
    match plan.pick:
        case Pick.ONLY:
            return f"only candidate that qualifies ({tier})"
        case Pick.CHEAPEST:
            return f"cheapest that qualifies ({tier})"
        case Pick.CROWDED:
            return f"qualifies, and leaves busy cheaper nodes to shorter prompts ({tier})"
        case Pick.FASTEST:
            return f"cheapest that qualifies, fastest of its cost ({tier})"
        case Pick.WARM:
            return f"cheapest that qualifies, near-tie for its warm prefix ({tier})"
        case Pick.NEAR_TIE:
            near = "cheapest that qualifies" if plan.first.qualified else "none qualifies, best odds"
            return f"{near}, near-tie by free slots and chance ({tier})"
        case Pick.HAS_ROOM:
            return f"better choices have no room and cannot be waited for ({tier})"
        case Pick.BEST_ODDS:
            return f"at risk: none qualifies, best odds ({tier})"
        case Pick.BEST_QUALITY:
            return f"at risk: none reaches the quality asked, best P(good) ({tier})"
        case Pick.EXPLORED:
            return f"qualifies too, tried to learn of it ({tier})"
        case Pick.BASELINE:
            return f"{plan.policy} ({tier})"


def _scores(choice: Choice, query: RouteQuery, judged: bool) -> str:
    p = choice.prediction
    parts = [f"TTFT {p.ttft_ms:.0f} ms (queue {p.queue_ms:.0f}, prefill {p.prefill_ms:.0f}, "]
    parts[0] += f"network {p.network_ms:.0f}), p95 {p.ttft_p95_ms:.0f} ms"
    if p.wake_ms:
        parts.append(f"of it {p.wake_ms:.0f} ms to load the model")
    if p.cached_tokens:
        parts.append(f"{p.cached_tokens} of {query.analysis.prompt_tokens} prompt tokens warm")
    if query.budget.limits_anything:
        factor = query.margins.get(choice.node.binding.tier, 1.0)
        spare = f" with {100 * (1 - 1 / factor):.0f} % of it to spare" if factor > 1.0 else ""
        parts.append(f"P(meets budget{spare}) {choice.p_meet:.2f} of {query.target_share:.2f}")
    if judged:
        asked = f" of {query.min_p_good:.2f}" if query.min_p_good > 0 else ""
        parts.append(f"P(good) {choice.p_good:.2f}{asked} ({'' if choice.certified else 'not '}certified)")
    parts.append(f"cost {choice.cost_per_mtoken:.4g} per million tokens{_extra(choice)}")
    power = choice.node.load.power
    if power is not None and power.on_battery and power.battery_share is not None:
        below = ", below its floor" if is_saving(choice.node) else ""
        parts.append(f"on battery, {100 * power.battery_share:.0f} % left{below}")
    return ", ".join(parts)


def _extra(choice: Choice) -> str:
    if choice.extra is None:
        return ""
    named = (("energy", choice.extra.energy), ("metered link", choice.extra.link))
    told = ", ".join(f"{name} {cost:.3g}" for name, cost in named if cost > 0.0)
    return f" (of it {told})"


def _telling(refusal: Refusal) -> dict[str, int]:
    """What clients may know of who fell where: nothing of nodes that are kept for others."""
    return {name: count for name, count in refusal.removed.items() if name != Filter.TENANT}


def _removed(refusal: Refusal) -> str:
    removed = _telling(refusal)
    return ", ".join(f"{count} {_FILTER_WORDS.get(name, name)}" for name, count in removed.items())


def _limits(budget: Budget) -> str:
    parts = []
    if budget.ttft_ms is not None:
        parts.append(f"TTFT {budget.ttft_ms:.0f} ms")
    if budget.tpot_ms is not None:
        parts.append(f"per-token {budget.tpot_ms:.0f} ms")
    if budget.total_ms is not None:
        parts.append(f"total {budget.total_ms:.0f} ms")
    return ", ".join(parts)


def record(plan: Plan) -> dict[str, object]:
    """The decision as plain data for a log: numbers and names, nothing of the prompt."""
    return {
        "policy": plan.policy,
        "pick": plan.pick.value,
        **_asked(plan.query),
        "filtered": {str(name): count for name, count in plan.removed.items()},
        "considered": plan.considered,
        "candidates": [_scored(c) for c in plan.choices],
    }


def refusal_record(refusal: Refusal) -> dict[str, object]:
    """The same of a decision that sent the request nowhere."""
    return {
        "refused": refusal.reason.value,
        **_asked(refusal.query),
        "filtered": {str(name): count for name, count in refusal.removed.items()},
        "wait_ms": None if refusal.wait_ms is None else round(refusal.wait_ms, 2),
        "candidates": [_scored(c) for c in refusal.choices],
    }


def _asked(query: RouteQuery) -> dict[str, object]:
    return {
        "model": query.model,
        "named": query.named,
        "prompt_tokens": query.analysis.prompt_tokens,
        "max_tokens": query.max_tokens,
        "budget_ms": [query.budget.ttft_ms, query.budget.tpot_ms, query.budget.total_ms],
        "target": query.target_share,
        "margins": {tier.value: round(factor, 3) for tier, factor in query.margins.items()},
        "longest_ms": round(query.longest_ms, 2) if query.longest_ms < math.inf else None,
        "elapsed_ms": round(query.elapsed_ms, 2),
    }


def _scored(choice: Choice) -> dict[str, object]:
    p = choice.prediction
    return {
        "node": choice.node.announcement.name,
        "variant": choice.variant.digest[:12],
        "ttft_ms": round(p.ttft_ms, 2),
        "queue_ms": round(p.queue_ms, 2),
        "wake_ms": round(p.wake_ms, 2),
        "total_ms": round(p.total_ms, 2),
        "cached_tokens": p.cached_tokens,
        "p_meet": round(choice.p_meet, 4),
        "qualified": choice.qualified,
        "cost_per_mtoken": choice.cost_per_mtoken,
        "extra_cost": None if choice.extra is None else [round(each, 6) for each in choice.extra],
    }
