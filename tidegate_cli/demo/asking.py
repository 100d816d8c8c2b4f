"""Asking in the demo: one request and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tidegate


@dataclass(frozen=True, slots=True)
class Asked:
    """A request's outcome as its client saw it. `ttft_ms` is the client's own measurement."""

    completion: tidegate.Completion | None
    error: tidegate.TidegateError | None
    ttft_ms: float | None
    tokens: int
    node: str = ""

    @property
    def met(self) -> str:
        return "-" if self.completion is None else self.completion.budget.value

    @property
    def tier(self) -> str:
        route = self.completion.route if self.completion else None
        return route.tier.value if route else ""

    @property
    def p_good(self) -> float:
        """0 where there is no answer."""
        route = self.completion.route if self.completion else None
        return (route.p_good or 0.0) if route else 0.0


async def ask(
    client: tidegate.Client, prompt: Any, on_first: Callable[[str], None] = lambda node: None, **options: Any
) -> Asked:
    """Never raises for what the gateway answers: errors are outcomes here.

    `on_first` is told the node's name when the first token is there.
    """
    started_s = time.monotonic()
    ttft_ms: float | None = None
    tokens = 0
    stream = client.generate(prompt, **options)
    try:
        async with stream:
            async for chunk in stream:
                if ttft_ms is None:
                    ttft_ms = (time.monotonic() - started_s) * 1000
                    on_first(_node(stream))
                tokens += chunk.count
            return Asked(stream.completion(), None, ttft_ms, tokens, _node(stream))
    except tidegate.TidegateError as error:
        return Asked(None, error, ttft_ms, tokens, _node(stream))


def _node(stream: tidegate.GenerateStream) -> str:
    return stream.route.node_name if stream.route else ""
