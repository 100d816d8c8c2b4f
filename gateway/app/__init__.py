"""Puts a gateway replica together and runs it."""

from gateway.app.replica import GatewayApp, Ports, main
from gateway.app.wiring import check

__all__ = ["GatewayApp", "Ports", "check", "main"]
