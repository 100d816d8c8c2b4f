"""Discrete-event simulation of fleets under tidegate.routing and other policies; see docs/simulator.md."""
