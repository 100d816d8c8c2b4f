"""Route and outcome of an answer in a few headers, the same names over HTTP and in gRPC's metadata.

For whoever does not read bodies: proxies, access logs, command line tools. Names and values are printable
ASCII, route and outcome together within 1 KiB. Bodies say more (see tidegate.gateway.v1.Route and Finished).
"""

from __future__ import annotations

from tidegate.routing.domain import BudgetOutcome, Finished, Route

PREFIX = "x-tidegate-"
NODE, TIER, MODEL, WHY = "node", "tier", "model", "why"
PREDICTED_TTFT, MEASURED_TTFT = "predicted-ttft-ms", "measured-ttft-ms"
ATTEMPTS, BUDGET = "attempts", "budget"
# Never inputs: a proxy may copy them back at us.
NAMES = frozenset({NODE, TIER, MODEL, WHY, PREDICTED_TTFT, MEASURED_TTFT, ATTEMPTS, BUDGET})

MAX_BYTES = 1024
# What an outcome takes at most.
_OUTCOME_BYTES = 128
_MAX_NAME_CHARS = 128


def of_route(route: Route) -> dict[str, str]:
    """Where the answer comes from, what was expected, and why; the reason is cut where it is too long."""
    headers = {
        PREFIX + NODE: _ascii(route.node_name or route.node_id)[:_MAX_NAME_CHARS],
        PREFIX + TIER: route.tier.value,
        PREFIX + MODEL: _ascii(route.model)[:_MAX_NAME_CHARS],
    }
    # A device's own API predicts nothing.
    if route.predicted_ttft_ms > 0.0:
        headers[PREFIX + PREDICTED_TTFT] = f"{route.predicted_ttft_ms:.1f}"
    name = PREFIX + WHY
    # Each header costs its name, its value, ": " and the line's end.
    used = sum(len(key) + len(value) + 4 for key, value in headers.items()) + len(name) + 4
    if route.why:
        headers[name] = _ascii(route.why)[: MAX_BYTES - _OUTCOME_BYTES - used]
    return headers


def of_outcome(finished: Finished) -> dict[str, str]:
    """What became of it, known when the answer has ended."""
    headers = {
        PREFIX + ATTEMPTS: str(finished.attempts),
        PREFIX + MEASURED_TTFT: f"{finished.timings.ttft_ms:.1f}",
    }
    if finished.budget is not BudgetOutcome.NONE:
        headers[PREFIX + BUDGET] = finished.budget.value
    return headers


def _ascii(text: str) -> str:
    return "".join(char if " " <= char <= "~" else "?" for char in text).strip()
