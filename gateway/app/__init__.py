"""Puts a gateway replica together and runs it."""

from gateway.app.replica import GatewayApp, Ports, main

__all__ = ["GatewayApp", "Ports", "main"]
