"""Which answers are drawn to be judged, and what is kept of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gateway.dispatch.caller import Client
from gateway.dispatch.rates import Rates
from gateway.dispatch.run import RequestRun
from gateway.telemetry import OutcomeRow, PairRow, VerdictRow
from gateway.telemetry.outcomes import Source
from tidegate.routing.domain import Code, ServeError, Variant
from tidegate.routing.plan import Choice


class OutcomeWriter(Protocol):
    """Implemented by gateway.telemetry.OutcomeLog."""

    def write(self, row: OutcomeRow | PairRow | VerdictRow) -> None: ...

    def close(self) -> None: ...


class Outcomes:
    """Draws with the same chance for every answer, whatever the prompt, so that the drawn ones speak for all.

    Without a writer nothing is drawn or kept, and verdicts are refused. `wall_clock` gives seconds since
    1970, `rng` numbers in [0, 1), `rates` bounds the verdicts of each key. `complexity` is the fingerprint of
    the complexity model, `best` gives the digest of the best variant."""

    def __init__(
        self,
        writer: OutcomeWriter | None = None,
        *,
        share: float = 0.02,
        wall_clock: Callable[[], float] = lambda: 0.0,
        rng: Callable[[], float] = lambda: 1.0,
        rates: Rates | None = None,
        complexity: str = "",
        best: Callable[[], str] = lambda: "",
    ) -> None:
        self._writer = writer
        self._share = share
        self._wall_clock = wall_clock
        self._rng = rng
        self._rates = rates
        self._complexity = complexity
        self._best = best

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def answered(self, run: RequestRun, choice: Choice) -> bool:
        """Keeps one answer; True when a verdict on it is wanted."""
        if self._writer is None:
            return False
        drawn = self._rng() < self._share
        self._writer.write(
            OutcomeRow(
                request=run.request.request_id,
                tenant=run.client.tenant,
                at_s=self._wall_clock(),
                difficulty=run.query.analysis.difficulty,
                variant=choice.variant.digest,
                model=choice.variant.model,
                tier=choice.node.binding.tier.value,
                data_class=run.data_class,
                propensity=self._share,
                drawn=drawn,
                complexity=self._complexity,
                best=self._best(),
            )
        )
        return drawn

    def paired(
        self, run: RequestRun, served: Choice, copied: Choice, is_best: Callable[[Variant], bool]
    ) -> None:
        """Keeps that two variants answered. The one to be judged is the one that is not the best."""
        if self._writer is None or served.variant.digest == copied.variant.digest:
            return
        judged, other = copied, served
        if is_best(copied.variant) and not is_best(served.variant):
            judged, other = served, copied
        self._writer.write(
            PairRow(
                request=run.request.request_id,
                tenant=run.client.tenant,
                at_s=self._wall_clock(),
                difficulty=run.query.analysis.difficulty,
                variant=judged.variant.digest,
                model=judged.variant.model,
                data_class=run.data_class,
                propensity=run.resolved.shadow_share,
                paired_with=other.variant.digest,
                against_best=is_best(other.variant) and not is_best(judged.variant),
                complexity=self._complexity,
                best=self._best(),
            )
        )

    def verdict(self, request_id: str, client: Client, *, worse: bool, variant: str = "") -> None:
        """On the answer, or on that of `variant` of a pair, beside the other one's.

        Raises ServeError(FAILED_PRECONDITION) where no outcomes are kept, RESOURCE_EXHAUSTED above the rate.
        """
        if self._writer is None:
            raise ServeError(
                Code.FAILED_PRECONDITION,
                "this gateway keeps no outcomes: quality.outcome_log is not set",
                reason="NO_OUTCOME_LOG",
            )
        if self._rates is not None:
            self._rates.take(client.key)
        source: Source = "pair" if variant else "feedback"
        self._writer.write(VerdictRow(request_id, client.tenant, self._wall_clock(), worse, source, variant))
