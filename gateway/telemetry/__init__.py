"""Metrics and the request log."""

from gateway.telemetry.metrics import Metrics
from gateway.telemetry.requestlog import RequestLog, RequestRow

__all__ = ["Metrics", "RequestLog", "RequestRow"]
