"""What was learned of one node and variant, and pooled over one hardware class and variant.

Queue, prefill and step are regressions of the node's own stamps on what its report and its load let expect;
the network is the round trip plus what neither of them explains. Times to the first token and times per token
are learned apart and never mixed. A node's prior is its class, a class's prior is the report.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidegate.routing.curves import Curves
from tidegate.routing.domain import NodeState, Speeds
from tidegate.routing.observation import Observation
from tidegate.routing.odds import JointOdds, Odds
from tidegate.routing.prediction import Prediction
from tidegate.routing.regression import Regression
from tidegate.routing.residuals import ENOUGH, REGIMES, Residuals, Scored, odds_of

# Of every way to a node and back this much is taken to be there beside the round trip.
NETWORK_BASE_MS = 10.0
MIN_OUTPUT_TOKENS = 3
FULL_OUTPUT_TOKENS = 8
IDLE, BUSY, QUEUED = range(REGIMES)
# Engines cut a prefill so that running answers wait no longer than about this for their next token.
PREFILL_CHUNK_MS = 120.0
# Whatever was learned, nothing takes no time at all.
LEAST_MS = 1e-6

_SPARE_WEIGHT, _MAX_SPARE = 0.1, 32.0
# A report that moved by less than this is the same report.
_SAME_REPORT = 0.05
# Priors are worth this many observations: a class's word about a node counts for more than the node's own.
_CLASS_PRECISION = 0.08
_REPORT_PRECISION = 0.1
# What is still waiting is worth less than an answer: how late it will be is not known yet.
_LATE_STRENGTH = 0.7
_MAX_LATE = 4.0
# More ratios than this are lost when a node changes; these are the newest, of the change itself.
_KEPT_AFTER_CHANGE = ENOUGH + 1

# What a node's load and all that is known of it let expect of any request, in milliseconds: see look_at().
Outlook = tuple[
    NodeState, float, float, float, float, float, float, float, float, float, float, float, float, float,
    float, float, float, Odds, int, int, tuple[float, float], tuple[float, float], float,
    float,
]  # fmt: skip


class Knowledge:
    """Of a node (`pool` is its class) or of a class (`pool` is None)."""

    __slots__ = (
        "_busy", "_class_joint", "_idle", "_queued", "boot_id", "curves", "faded_s", "heard_s", "network",
        "outlook", "pool", "prefill", "queue", "residuals", "seen", "spare_tokens", "step", "terms",
    )  # fmt: skip

    def __init__(self, pool: Knowledge | None = None, boot_id: str = "", now_s: float = 0.0) -> None:
        precision = _REPORT_PRECISION if pool is None else _CLASS_PRECISION
        self.pool = pool
        self.boot_id = boot_id
        one = pool is not None
        self.queue: Regression = Regression(pool.queue.theta if pool else (1.0, 1.0), precision, drifts=one)
        self.prefill: Regression = Regression(
            pool.prefill.theta if pool else (0.0, 1.0, 1.0, 1.0), precision, drifts=one
        )
        self.step: Regression = Regression(pool.step.theta if pool else (1.0, 1.0), precision, drifts=one)
        self.network: Regression = Regression(pool.network.theta if pool else (1.0,), precision, drifts=one)
        self.residuals = Residuals()
        self.spare_tokens: float = pool.spare_tokens if pool else 0.0
        self.curves: Curves | None = None
        self.faded_s = self.heard_s = now_s
        self.seen = 0
        # What a regime was last scored with: no list, which would lie elsewhere.
        self._idle: Scored | None = None
        self._busy: Scored | None = None
        self._queued: Scored | None = None
        self._class_joint: JointOdds | None = None
        self.settle()

    def settle(self) -> None:
        """To be called when something was learned or forgotten. Decisions read what is known of a few nodes
        out of thousands: here it lies side by side, which for the processor's cache is half the way."""
        alone, fresh, ahead, beside = self.prefill.theta
        one, more = self.step.theta
        slot, waiting = self.queue.theta
        least = 1.0 if self.prefill.is_young else 0.0
        # Adding nothing makes new numbers, one beside the other.
        self.terms = (
            alone + 0.0, fresh + 0.0, ahead + 0.0, beside + 0.0, one + 0.0, more + 0.0, slot + 0.0,
            waiting + 0.0, self.network.theta[0] + 0.0, least, self.spare_tokens + 0.0,
        )  # fmt: skip
        self.outlook: Outlook | None = None

    def hears_its_class(self) -> bool:
        """Whether the odds it was last scored with are still those of its class."""
        return self.pool is None or self.pool.residuals.joint.odds is self._class_joint

    def scored(self, regime: int) -> Scored:
        """Odds and the medians of TTFT, per-token time and total, as ratios to the raw predictions."""
        joint = (self if self.pool is None else self.pool).residuals.joint.odds
        if joint is not self._class_joint:
            self._class_joint = joint
            self._missed_anew()
        found = self._idle if regime == IDLE else self._busy if regime == BUSY else self._queued
        if found is None:
            found = self._score(regime)
            if regime == IDLE:
                self._idle = found
            elif regime == BUSY:
                self._busy = found
            else:
                self._queued = found
        return found

    def _score(self, regime: int) -> Scored:
        own, pool = self.residuals, self.pool
        if pool is None:
            return odds_of((own,), (own,), regime)
        if own.ttft[regime].odds is None and self._class_joint is not None:
            return pool.scored(regime)  # all is its class's: one object for all its nodes
        # How an answer goes on depends on what comes beside it. A node that was crowded would look slow
        # for as long as it is left alone, if that were taken for its own: it is its class's.
        return odds_of((own, pool.residuals), (pool.residuals, own), regime)

    def _missed_anew(self, regime: int | None = None) -> None:
        """In one regime, or in what all of them share."""
        if regime is None or regime == IDLE:
            self._idle = None
        if regime is None or regime == BUSY:
            self._busy = None
        if regime is None or regime == QUEUED:
            self._queued = None

    def curves_of(self, speeds: Speeds, slots: int) -> Curves:
        """The node's report as times. Where it moved, what was learned is put into its new units."""
        old = self.curves
        if old is not None and (old.speeds is speeds or old.speeds == speeds):
            return old
        new = Curves(speeds)
        if old is None:
            self.curves = new
            return new
        token, alone = new.ms_per_token / old.ms_per_token, new.alone_ms / old.alone_ms
        full = new.steps_ms[slots] / old.steps_ms[slots]
        if all(abs(ratio - 1.0) < _SAME_REPORT for ratio in (token, alone, full)):
            return old
        self.curves = new
        self.queue.rebase((full, token))
        self.prefill.rebase((alone, token, token, alone * token))
        self.step.rebase((alone, full))
        self.settle()
        return new

    def look_at(self, node: NodeState, curves: Curves) -> Outlook:
        """What any request may expect there, the rest is its own; `curves` are the node's report."""
        load, sent, active, slots = node.load, node.in_flight, node.active, node.slots
        (
            of_alone, of_fresh, of_ahead, of_beside, of_one, of_more, of_slot, of_waiting, of_path, least,
            spare_tokens,
        ) = self.terms  # fmt: skip
        # What was just sent counts as load until the node acknowledges it.
        beside = active if active < slots else slots - 1
        steps_ms, alone_ms = curves.steps_ms, curves.alone_ms
        beside_ms = steps_ms[beside]
        ahead_ms = (load.pending_prefill_tokens + sent.prefill_tokens) * curves.ms_per_token
        if active >= slots:
            regime = QUEUED
            pending = load.pending_decode_tokens + sent.decode_tokens
            waiting_ms = ahead_ms * (1.0 + beside_ms / PREFILL_CHUNK_MS)
            queue_parts = (_slot_wait_ms(active, slots, pending, steps_ms[slots]), waiting_ms)
            queue_ms = of_slot * queue_parts[0] + of_waiting * waiting_ms
            ahead_ms = 0.0
        else:
            regime = BUSY if active or ahead_ms else IDLE
            queue_parts, queue_ms = (0.0, 0.0), 0.0
        behind_ms = of_ahead * ahead_ms
        step_parts = (alone_ms, steps_ms[beside + 1] - alone_ms)
        tpot_ms = of_one * step_parts[0] + of_more * step_parts[1] + LEAST_MS
        rtt_ms = node.rtt_ms
        network_ms = of_path * (rtt_ms + NETWORK_BASE_MS) - NETWORK_BASE_MS
        if network_ms < rtt_ms:
            network_ms = rtt_ms
        odds, of_ttft, of_tpot, of_total = self.scored(regime)
        # As a plain tuple: it is made and taken apart once per candidate of every decision.
        return (
            node,
            curves.ms_per_token,
            spare_tokens,
            alone_ms,
            ahead_ms,
            beside_ms,
            # The network and what is ahead.
            network_ms + queue_ms + behind_ms,
            # What a prefill takes however short it is, and how many times as long as reported its tokens
            # and the decodes beside it take.
            of_alone * alone_ms,
            of_fresh,
            of_beside,
            # However few tokens are left, the weights are read once: no pass is shorter than a step alone.
            alone_ms * least,
            tpot_ms,
            # Medians: per token, of the wait and of the network; then what makes medians of the rest.
            tpot_ms * of_tpot,
            (queue_ms + behind_ms) * of_ttft,
            network_ms * of_ttft,
            of_ttft,
            of_total,
            odds,
            beside + 1,
            regime,
            queue_parts,
            step_parts,
            rtt_ms,
            load.wake_ms,
        )

    # --- learning ---

    def late(self, p: Prediction, waited_ms: float) -> bool:
        """No first token after `waited_ms`: at least this long, which only counts where it is news."""
        queue, prefill = self.queue.expect(p.queue_parts), self.prefill.expect(p.prefill_parts)
        times = (waited_ms - p.network_ms) / max(queue + prefill, 1.0)
        if times <= 1.0:
            return False
        times = min(times, _MAX_LATE)
        changed = self.prefill.learn(p.prefill_parts, prefill * times, _LATE_STRENGTH)
        if p.regime == QUEUED:
            self.queue.learn(p.queue_parts, queue * times, _LATE_STRENGTH)
        return changed

    def first_token(self, o: Observation, ttft_ms: float) -> bool:
        """Learns from the first token of an attempt; True when the node has changed."""
        p = o.prediction
        self.seen += 1
        if o.prompt_tokens > 0:
            path_ms = p.rtt_ms + NETWORK_BASE_MS
            rest_ms = max(ttft_ms - p.rtt_ms - o.queue_ms - o.prefill_ms, 0.0)
            changed = self.network.learn((path_ms,), path_ms + rest_ms)
            if not p.cached_tokens:
                self._spare(o.cached_tokens)
            if p.regime == QUEUED:
                self.queue.learn(p.queue_parts, o.queue_ms)
            fresh_tokens = o.prompt_tokens - o.cached_tokens
            return self.prefill.learn(_for_fresh(p, fresh_tokens), o.prefill_ms) or changed
        # Without stamps all that is not network is the node's own work.
        own = ttft_ms - p.network_ms - self.queue.expect(p.queue_parts)
        return self.prefill.learn(p.prefill_parts, max(own, 1.0))

    def per_token(self, o: Observation, tpot_ms: float) -> None:
        strength = min((o.output_tokens - 1) / FULL_OUTPUT_TOKENS, 1.0)
        self.step.learn(o.prediction.step_parts, tpot_ms, strength)

    def missed_by(self, p: Prediction, ttft_ms: float, changed: bool) -> None:
        """How far the first token missed its prediction, and whether it kept to the p95."""
        residuals = self.residuals.ttft[p.regime]
        residuals.add(ttft_ms / max(p.raw_ttft_ms, 1.0), ttft_ms > p.ttft_p95_ms)
        if changed:
            for regime in self.residuals.ttft:
                regime.keep_newest(_KEPT_AFTER_CHANGE)
            self._missed_anew()
        else:
            self._missed_anew(p.regime)

    def missed_all_by(self, o: Observation, ttft_ms: float, tpot_ms: float) -> None:
        p = o.prediction
        total_ms = ttft_ms + (o.output_tokens - 1) * tpot_ms
        sample = (
            ttft_ms / max(p.ttft_ms, 1.0),
            tpot_ms / max(p.raw_tpot_ms, 1e-3),
            total_ms / max(p.raw_total_ms, 1.0),
        )
        self.residuals.joint.add(sample, tpot_ms > p.tpot_p95_ms, total_ms > p.total_p95_ms)
        self._missed_anew()

    def _spare(self, cached_tokens: int) -> None:
        """A moving mean of what was warm though nobody expected it: a template's opening, mostly."""
        off = cached_tokens - self.spare_tokens
        self.spare_tokens += _SPARE_WEIGHT * min(max(off, -_MAX_SPARE), _MAX_SPARE)

    def refresh(self) -> None:
        """After its parts were filled in from elsewhere."""
        for regime in self.residuals.ttft:
            regime.sort()
        self.residuals.joint.sort()
        self._missed_anew()
        self.settle()

    # --- forgetting ---

    def is_shunned(self) -> bool:
        """So much slower than its class that it may get no work any more, and so no chance to show better."""
        return any(
            regression.theta[part] > 2.0 * regression.prior[part]
            for regression, part in ((self.prefill, 1), (self.step, 0), (self.network, 0))
        )

    def is_forgotten(self) -> bool:
        """So little is left that the class says as much."""
        return self.prefill.weight < 0.2 and self.step.weight < 0.2

    def fade(self, keep: float) -> None:
        for regression in (self.queue, self.prefill, self.step, self.network):
            regression.fade(keep)
        self.settle()


def _slot_wait_ms(active: int, slots: int, pending_decode_tokens: int, full_step_ms: float) -> float:
    """Until a slot is free, all slots decoding: E[first of `slots` to end], then one slot's share each.

    Remaining lengths are taken as uniform around their mean, whose first order statistic is
    2 * mean / (slots + 1).
    """
    mean_tokens = max(pending_decode_tokens, active) / active
    return full_step_ms * mean_tokens * (2.0 / (slots + 1) + (active - slots) / slots)


def _for_fresh(p: Prediction, fresh_tokens: int) -> Sequence[float]:
    """The parts as they would have been, had the tokens that really needed computing been known."""
    const, fresh, ahead, beside = p.prefill_parts
    actual = fresh * max(fresh_tokens, 1) / max(p.fresh_tokens, 1.0)
    return (const, actual, ahead, beside * (actual + ahead) / max(fresh + ahead, 1e-6))
