"""Prompt analysis: token estimate, prefix names and difficulty, within a millisecond, without a network."""

from gateway.analysis.analyzer import Analyzer
from gateway.analysis.difficulty import DifficultyModel, ModelUnusable
from gateway.analysis.tokens import estimate_chat_tokens, estimate_tokens

__all__ = ["Analyzer", "DifficultyModel", "ModelUnusable", "estimate_chat_tokens", "estimate_tokens"]
