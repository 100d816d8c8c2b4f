"""Engines behind one seam."""

from serving.engines.base import Engine, EngineInfo, EngineLoad, EngineRefused, EngineUnavailable

__all__ = ["Engine", "EngineInfo", "EngineLoad", "EngineRefused", "EngineUnavailable"]
