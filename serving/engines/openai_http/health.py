"""Watching an upstream server: is it there, and what do its metrics say."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from serving.engines.openai_http.failures import UpstreamFailed, failure_of_status
from serving.engines.openai_http.metrics import MetricsUnreadable, UpstreamMetrics, parse_metrics
from serving.engines.openai_http.models import ListedModel, parse_models
from serving.engines.openai_http.settings import OpenAiHttpSettings
from serving.engines.openai_http.upstream import Page, Upstream
from tidegate.routing.domain import Failure

_log = logging.getLogger(__name__)
_ABSENT = frozenset({404, 405, 501})
_RATE_LIMITED = 429  # alive, though it wants fewer questions
_FRESH_INTERVALS = 3.0
_NO_METRICS_RETRY_S = 60.0


class KeyRefused(UpstreamFailed):
    """The server wants another API key: waiting does not help."""


class Watched(Protocol):
    """The engine as its watch sees it."""

    def silence_s(self) -> float | None:
        """Seconds since the last output while work runs, None while none does."""
        ...

    def running_here(self) -> int:
        """How many of the server's requests are this engine's."""
        ...

    def on_health(self, ready: bool) -> None:
        """Readiness changed, or bad health was confirmed."""
        ...


class UpstreamWatch:
    """`ready` follows the server's own health, and falls at once when the engine saw it fail.

    A server that is slow to answer while it works is busy, not ill, and running sequences have watchdogs of
    their own.
    """

    def __init__(
        self,
        settings: OpenAiHttpSettings,
        upstream: Upstream,
        clock: Callable[[], float],
        engine: Watched,
    ) -> None:
        self._settings = settings
        self._upstream = upstream
        self._clock = clock
        self._engine = engine
        self._has_health = True
        self._metrics = UpstreamMetrics()
        self._metrics_at_s = float("-inf")
        self._hurry = asyncio.Event()
        self._others = 0
        self.model = settings.upstream_model
        self.ready = False

    def metrics(self) -> UpstreamMetrics:
        """What the server said last; empty once that is too old to believe."""
        age_s = self._clock() - self._metrics_at_s
        fresh = age_s <= _FRESH_INTERVALS * max(self._settings.metrics_interval_s, 0.1)
        return self._metrics if fresh else UpstreamMetrics()

    def others(self) -> int:
        """How many requests of other clients ran or waited in the server when it said so last."""
        return self._others if self.metrics().says_anything else 0

    def suspect(self) -> None:
        """Not ready until the next probe says otherwise; it comes at once."""
        if self.ready:
            _log.warning("the upstream server failed: not ready until it answers its health probe")
        self.ready = False
        self._hurry.set()

    async def wait_alive(self) -> tuple[ListedModel, ...]:
        """Waits until the server is healthy; its models. Raises UpstreamFailed when the time is over."""
        give_up_s = self._clock() + self._settings.start_timeout_s
        while True:
            try:
                await self._probe()
                models = await self._list_models()
                self.ready = True
                return models
            except KeyRefused:
                raise
            except UpstreamFailed:
                if self._clock() >= give_up_s:
                    raise
            await asyncio.sleep(min(0.5, self._settings.health_interval_s))

    async def version(self) -> str:
        """The server's version if it tells one (vLLM and llama-server do), else ""."""
        for path, member in (("/version", "version"), ("/props", "build_info")):
            try:
                page = await self._upstream.get(path, timeout_s=self._settings.health_timeout_s)
            except UpstreamFailed:
                return ""
            said = page.json() if page.status == 200 else None
            version = said.get(member) if isinstance(said, dict) else None
            if isinstance(version, str) and version.isprintable():
                return version[:40]
        return ""

    async def run_health(self) -> None:
        """Probes until cancelled."""
        while True:
            self._hurry.clear()
            failure = await self._ailment()
            if not self._hurry.is_set():
                self._note(failure)
            try:
                # Not wait_for: before Python 3.12 it swallows a cancellation that comes as its future ends.
                async with asyncio.timeout(self._settings.health_interval_s):
                    await self._hurry.wait()
            except TimeoutError:
                pass

    async def run_metrics(self) -> None:
        """Scrapes until cancelled; a server without metrics is asked again once a minute."""
        while self._settings.metrics_interval_s > 0:
            useful = await self.scrape()
            await asyncio.sleep(self._settings.metrics_interval_s if useful else _NO_METRICS_RETRY_S)

    async def scrape(self) -> bool:
        """One look at /metrics; False when the server has none that are known here."""
        try:
            page = await self._upstream.get("/metrics", timeout_s=self._settings.health_timeout_s)
            if page.status != 200:
                return page.status not in _ABSENT
            metrics = parse_metrics(page.body.decode("utf-8", "replace"), model=self.model)
        except UpstreamFailed:
            return True
        except MetricsUnreadable as error:
            _log.warning("the upstream server's metrics cannot be read: %s", error)
            return False
        if metrics.says_anything:
            self._metrics, self._metrics_at_s = metrics, self._clock()
            all_of_them = (metrics.running or 0) + (metrics.waiting or 0)
            self._others = max(0, all_of_them - self._engine.running_here())
        return metrics.says_anything

    def _note(self, failure: Failure | None) -> None:
        if failure is None and not self.ready:
            _log.info("the upstream server is ready")
        elif failure is not None and self.ready:
            _log.warning("the upstream server is not ready: %s", failure.detail)
        was_ready, self.ready = self.ready, failure is None
        if not (was_ready and self.ready):
            self._engine.on_health(self.ready)

    async def _ailment(self) -> Failure | None:
        """What a probe finds wrong. Output that flows is the best probe; a slow answer is no ailment."""
        silence_s = self._engine.silence_s()
        if self.ready and silence_s is not None and silence_s < self._settings.health_interval_s:
            return None
        try:
            await self._probe()
        except UpstreamFailed as error:
            slow = isinstance(error.__cause__, TimeoutError)
            return None if slow and self.ready and self._engine.silence_s() is not None else error.failure
        return None

    async def _probe(self) -> None:
        """Raises UpstreamFailed unless the server says that it is healthy."""
        page = await self._ask_health()
        if page.status != _RATE_LIMITED:
            _require_ok(page)

    async def _ask_health(self) -> Page:
        timeout_s = self._settings.health_timeout_s
        if self._has_health:
            page = await self._upstream.get("/health", timeout_s=timeout_s)
            if page.status not in _ABSENT:
                return page
            self._has_health = False
        return await self._upstream.get("/models", timeout_s=timeout_s, of_api=True)

    async def _list_models(self) -> tuple[ListedModel, ...]:
        """Empty when the server has no such list. Raises UpstreamFailed, also for a refused key."""
        page = await self._upstream.get("/models", timeout_s=self._settings.health_timeout_s, of_api=True)
        if page.status in _ABSENT:
            return ()
        _require_ok(page)
        return parse_models(page.json())


def _require_ok(page: Page) -> None:
    if page.status == 200:
        return
    failure = failure_of_status(page.status, page.body)
    raise KeyRefused(failure) if page.status in (401, 403) else UpstreamFailed(failure)
