"""One structured line per request, and one audit line per decision on limited data. Never prompt text."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass

_requests = logging.getLogger("gateway.requests")
_decisions = logging.getLogger("gateway.decisions")
_audit = logging.getLogger("gateway.audit")


# A single request costs next to nothing.
_DIGITS = {"cost": 9, "cost_per_mtoken": 4}


@dataclass(slots=True)
class RequestRow:
    """What is worth knowing of a request afterwards. Times are milliseconds, `cost` the operator's money."""

    request_id: str
    tenant: str
    model: str
    data_class: str
    code: str = "ok"
    reason: str = ""
    node: str = ""
    tier: str = ""
    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    predicted_ttft_ms: float = 0.0
    predicted_ttft_p95_ms: float = 0.0
    ttft_ms: float = 0.0
    tpot_ms: float = 0.0
    total_ms: float = 0.0
    decision_ms: float = 0.0
    waited_ms: float = 0.0
    budget: str = "none"
    at_risk: bool = False
    cost_per_mtoken: float = 0.0
    cost: float = 0.0


class RequestLog:
    def __init__(self) -> None:
        # Whoever wants decisions or an audit gets them, however quiet the rest of the log is.
        for logger in (_decisions, _audit):
            logger.setLevel(logging.INFO)

    def write(self, row: RequestRow) -> None:
        fields = {
            k: round(v, _DIGITS.get(k, 2)) if isinstance(v, float) else v for k, v in asdict(row).items()
        }
        _requests.info("request", extra=fields)

    def decision(self, request_id: str, reasons: Mapping[str, object]) -> None:
        """One of the sampled decisions, with its candidates."""
        _decisions.info("decision", extra={"request_id": request_id, **reasons})

    def audit(
        self, *, request_id: str, tenant: str, data_class: str, decision: str, node: str, tier: str
    ) -> None:
        """Complete for every data class that limits anything: where the request went, or that it did not."""
        _audit.info(
            "data class decision",
            extra={
                "request_id": request_id,
                "tenant": tenant,
                "data_class": data_class,
                "decision": decision,
                "node": node,
                "tier": tier,
            },
        )
