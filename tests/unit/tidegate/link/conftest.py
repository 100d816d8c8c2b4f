"""Property tests run on shared machines: time per example is not what they check."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("tidegate", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tidegate")
