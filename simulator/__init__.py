"""Discrete-event simulation over tidegate.routing. Empty until it is built; see docs/architecture.md."""
