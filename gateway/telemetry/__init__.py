"""Metrics and the request log."""

from gateway.telemetry.metrics import Metrics
from gateway.telemetry.outcomes import OutcomeLog, OutcomeRow, PairRow, VerdictRow
from gateway.telemetry.requestlog import RequestLog, RequestRow

__all__ = ["Metrics", "OutcomeLog", "OutcomeRow", "PairRow", "RequestLog", "RequestRow", "VerdictRow"]
