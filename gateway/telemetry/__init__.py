"""Metrics and the request log."""

from gateway.telemetry.metrics import Metrics
from gateway.telemetry.outcomes import OutcomeLog, OutcomeRow, VerdictRow
from gateway.telemetry.requestlog import RequestLog, RequestRow

__all__ = ["Metrics", "OutcomeLog", "OutcomeRow", "RequestLog", "RequestRow", "VerdictRow"]
