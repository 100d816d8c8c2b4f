"""How long a request would take on a node: prediction, and the odds of meeting a budget.

`LatencyModel` is the seam. `LearnedLatency` expects what a node's report and load say, part by part, times
what it has learned of each part from that node's own stamps; nodes it knows nothing of are like the others of
their hardware class, and a class nobody knows is as it reports itself.
"""

from __future__ import annotations

import math
from typing import Protocol

from tidegate.routing import handover
from tidegate.routing.curves import Curves
from tidegate.routing.domain import Budget, NodeState, RouteQuery, SessionHint, Speeds, Variant
from tidegate.routing.knowledge import (
    LEAST_MS,
    MIN_OUTPUT_TOKENS,
    PREFILL_CHUNK_MS,
    Knowledge,
    Outlook,
)
from tidegate.routing.lengths import Lengths
from tidegate.routing.observation import Observation, Outcome, Stage
from tidegate.routing.prediction import Prediction, p_meet
from tidegate.routing.prefix import BLOCK_BYTES, NAMED_BLOCKS, matched_blocks

BYTES_PER_TOKEN = 4
BLOCK_TOKENS = BLOCK_BYTES // BYTES_PER_TOKEN
NAMED_TOKENS = NAMED_BLOCKS * BLOCK_TOKENS
# Classes learn from every node; once they know something, every fourth observation is enough.
_CLASS_LEARNS_ALL, _CLASS_LEARNS_EACH = 64, 4
_MAX_CURVES = 20_000
_BEYOND_WEIGHT = 0.1
# Who has seen fewer first tokens than this takes over what a peer knows.
_ADOPT_BELOW = 20
# Every node fades a little this often.
_FADE_ROUND_S = 60.0


class LatencyModel(Protocol):
    """What the policy asks of a latency model. Must be pure with respect to one decision."""

    def predict(self, node: NodeState, variant: Variant, query: RouteQuery) -> Prediction: ...

    def p_meet(self, prediction: Prediction, budget: Budget, elapsed_ms: float) -> float:
        """P(all limited parts of the budget are met), with `elapsed_ms` of it already gone."""
        ...


class LearnedLatency:
    """Learns from observations, online. Owned by one caller; time comes in through decay().

    `half_life_s` is how fast knowledge of a node fades towards its class without news, `shunned_half_life_s`
    how fast where the node looks so slow that nobody sends it anything: it must get another chance.
    """

    p_meet = staticmethod(p_meet)

    def __init__(self, *, half_life_s: float = 300.0, shunned_half_life_s: float = 60.0) -> None:
        if half_life_s <= 0.0 or shunned_half_life_s <= 0.0:
            raise ValueError("half lives must be positive")
        self._half_life_s = half_life_s
        self._shunned_half_life_s = shunned_half_life_s
        self._nodes: dict[tuple[str, str], Knowledge] = {}
        self._classes: dict[tuple[str, str], Knowledge] = {}
        self._unlearned = Knowledge()
        self._curves: dict[str, Curves] = {}
        self.lengths = Lengths()
        self._now_s = 0.0
        self._fading: list[tuple[str, str]] = []
        self._changed: set[tuple[str, str, str]] = set()
        self._class_of: dict[str, str] = {}
        self._beyond: dict[str, float] = {}

    # --- predicting ---

    def predict(self, node: NodeState, variant: Variant, query: RouteQuery) -> Prediction:
        asked, model, most = query.analysis.prompt_tokens, variant.model, query.max_tokens
        told_model, told_prompt, told_most, prompt_tokens, tokens = self.lengths.last
        if told_model is not model or told_prompt != asked or told_most != most:
            prompt_tokens, tokens = self.lengths.of(model, asked, most)
        cached = 0
        if node.prefix_blocks or query.session is not None:
            cached = expected_cached_tokens(node, variant, query)
            if cached == NAMED_TOKENS:
                cached += int(self._beyond.get(variant.digest, 0.0) * (asked - cached))
        (
            _, per_token_ms, spare_tokens, alone_ms, ahead_ms, beside_ms, before_ms, pass_ms, of_fresh,
            of_beside, least_ms, tpot_ms, median_tpot_ms, waited_ms, network_ms, of_ttft, of_total, odds,
            batch, regime, queue_parts, step_parts, rtt_ms, wake_ms,
        ) = self._outlook(node, variant)  # fmt: skip
        fresh = prompt_tokens - (cached or spare_tokens)
        if fresh < 1.0:
            fresh = 1.0
        fresh_ms = fresh * per_token_ms
        # Prefill shares one engine loop with running decodes: each chunk waits for one of their steps.
        chunks = (fresh_ms + ahead_ms) / PREFILL_CHUNK_MS
        if chunks > 1.0:
            beside_ms *= chunks
        prefill_ms = pass_ms + of_fresh * fresh_ms + of_beside * beside_ms
        if prefill_ms < least_ms:
            prefill_ms = least_ms
        raw_ttft_ms = before_ms + prefill_ms + LEAST_MS
        raw_total_ms = raw_ttft_ms + (tokens - 1.0) * tpot_ms
        # The constructor of a named tuple costs twice as much, once per candidate.
        fields = (
            raw_ttft_ms * of_ttft + wake_ms,
            median_tpot_ms,
            raw_total_ms * of_total + wake_ms,
            waited_ms,
            prefill_ms * of_ttft,
            network_ms,
            cached,
            batch,
            tokens,
            odds,
            raw_ttft_ms,
            tpot_ms,
            raw_total_ms,
            regime,
            fresh,
            asked,
            queue_parts,
            (alone_ms, fresh_ms, ahead_ms, beside_ms),
            step_parts,
            rtt_ms,
            wake_ms,
        )
        return tuple.__new__(Prediction, fields)

    def _outlook(self, node: NodeState, variant: Variant) -> Outlook:
        """Kept while neither the node nor what is known of it changes."""
        announced = node.announcement
        known = self._nodes.get((announced.node_id, variant.digest))
        if known is None or known.boot_id != announced.boot_id:
            known = self._classes.get((announced.hardware_class, variant.digest), self._unlearned)
            return known.look_at(node, self._report(announced.node_id, node.speeds))
        kept = known.outlook
        if kept is not None and kept[0] is node and known.hears_its_class():
            return kept
        known.outlook = kept = known.look_at(node, known.curves_of(node.speeds, node.slots))
        return kept

    def _report(self, node_id: str, speeds: Speeds) -> Curves:
        """The report of a node nothing is known about, as times."""
        found = self._curves.get(node_id)
        if found is None or not (found.speeds is speeds or found.speeds == speeds):
            if len(self._curves) >= _MAX_CURVES:
                self._curves.clear()
            found = self._curves[node_id] = Curves(speeds)
        return found

    # --- learning ---

    def record(self, observation: Observation) -> None:
        """Learn from one attempt. A censored one only counts where it already took longer than expected."""
        o = observation
        pool = self._pool(o.hardware_class, o.variant_digest)
        known = self._nodes.get((o.node_id, o.variant_digest))
        if known is None or known.boot_id != o.boot_id:
            known = self._nodes[o.node_id, o.variant_digest] = Knowledge(pool, o.boot_id, self._now_s)
            self._curves.pop(o.node_id, None)
            self._class_of[o.node_id] = o.hardware_class
        _learn(known, o)
        if o.prompt_tokens > 0 and not o.first_token_told:
            self._look_beyond(o)
        known.heard_s = self._now_s
        self._changed.add(("node", o.node_id, o.variant_digest))
        if pool.seen < _CLASS_LEARNS_ALL or known.seen % _CLASS_LEARNS_EACH == 0:
            _learn(pool, o)
            self._changed.add(("class", o.hardware_class, o.variant_digest))
        if o.stage is not Stage.ENDED:
            return
        if o.prompt_tokens > 0:
            self.lengths.prompted(o.model, o.prediction.asked_tokens, o.prompt_tokens)
        if o.output_tokens > 0:
            self.lengths.answered(o.model, o.prediction.asked_tokens, o.output_tokens, stopped=o.stopped)

    def _look_beyond(self, o: Observation) -> None:
        """Only the beginning of a long prompt has names. Where all of these are held, the rest is taken to
        be as warm as it was for such prompts of late."""
        asked = o.prediction.asked_tokens
        if o.prediction.cached_tokens < NAMED_TOKENS or asked <= NAMED_TOKENS:
            return
        named = NAMED_TOKENS * o.prompt_tokens / asked
        share = min(max((o.cached_tokens - named) / max(o.prompt_tokens - named, 1.0), 0.0), 1.0)
        before = self._beyond.get(o.variant_digest, 0.0)
        self._beyond[o.variant_digest] = before + _BEYOND_WEIGHT * (share - before)

    def _pool(self, hardware_class: str, variant_digest: str) -> Knowledge:
        key = (hardware_class, variant_digest)
        pool = self._classes.get(key)
        if pool is None:
            pool = self._classes[key] = Knowledge()
        return pool

    def quiet_s(self, node: NodeState, variant: Variant) -> float:
        """Seconds since the node last taught anything; infinite for one nothing is known of."""
        known = self._nodes.get((node.announcement.node_id, variant.digest))
        if known is None or known.boot_id != node.announcement.boot_id:
            return math.inf
        return self._now_s - known.heard_s

    def is_shunned(self, node: NodeState, variant: Variant) -> bool:
        """Whether it looks so slow beside its class that it may get no work any more."""
        known = self._nodes.get((node.announcement.node_id, variant.digest))
        return known is not None and known.boot_id == node.announcement.boot_id and known.is_shunned()

    # --- handing over ---

    def take_changed(self, limit: int = 256) -> dict[str, str]:
        """Records of what changed since they were last taken, by name; the rest comes with the next call."""
        records: dict[str, str] = {}
        for key in list(self._changed)[:limit]:
            kind, name, digest = key
            known = (self._nodes if kind == "node" else self._classes).get((name, digest))
            self._changed.discard(key)
            if known is None:
                continue
            node_id, hardware = (name, self._class_of.get(name, "")) if kind == "node" else ("", name)
            records[f"{kind} {name} {digest}"] = handover.tell(
                known, node_id=node_id, hardware_class=hardware, variant_digest=digest
            )
        if records:
            records["lengths"] = handover.tell_lengths(self.lengths)
        return records

    def adopt(self, name: str, record: str) -> bool:
        """Takes over what a peer learned where less is known here; False for a record that is not sound."""
        try:
            if name == "lengths":
                handover.read_lengths(record, self.lengths)
                return True
            told = handover.read(record)
        except ValueError:
            return False
        pool = self._pool(told.hardware_class, told.variant_digest)
        if not told.node_id:
            if pool.seen < _ADOPT_BELOW:
                handover.fill(pool, told.data)
            return True
        key = (told.node_id, told.variant_digest)
        known = self._nodes.get(key)
        if known is None or (known.seen < _ADOPT_BELOW and known.boot_id == told.boot_id):
            known = Knowledge(pool, told.boot_id, self._now_s)
            handover.fill(known, told.data)
            self._nodes[key] = known
            self._class_of[told.node_id] = told.hardware_class
        return True

    def decay(self, elapsed_s: float) -> None:
        """Time went by without news. Call it every few seconds; each call looks at a share of the nodes."""
        self._now_s += max(elapsed_s, 0.0)
        if not self._fading:
            self._fading = list(self._nodes)
        share = math.ceil(len(self._nodes) * min(elapsed_s / _FADE_ROUND_S, 1.0))
        for key in [self._fading.pop() for _ in range(min(share, len(self._fading)))]:
            known = self._nodes.get(key)
            if known is not None:
                half_life_s = self._shunned_half_life_s if known.is_shunned() else self._half_life_s
                known.fade(0.5 ** ((self._now_s - known.faded_s) / half_life_s))
                known.faded_s = self._now_s
                if known.is_forgotten():
                    del self._nodes[key]

    def forget(self, node_id: str) -> None:
        """A node restarted: what was learned of that process is void. Its class keeps what it knows."""
        for key in [key for key in self._nodes if key[0] == node_id]:
            del self._nodes[key]
        self._curves.pop(node_id, None)
        self._class_of.pop(node_id, None)


def _learn(known: Knowledge, o: Observation) -> None:
    _learn_stage(known, o)
    known.settle()


def _learn_stage(known: Knowledge, o: Observation) -> None:
    p, ttft_ms = o.prediction, o.actual_ttft_ms
    if o.stage is Stage.WAITING:
        known.late(p, ttft_ms or 0.0)
        return
    if ttft_ms is not None and not o.first_token_told:
        if not o.censored:
            known.missed_by(p, ttft_ms, known.first_token(o, ttft_ms))
        elif ttft_ms > p.ttft_p95_ms:
            known.missed_by(p, ttft_ms, known.late(p, ttft_ms))
        elif ttft_ms > p.raw_ttft_ms:
            known.late(p, ttft_ms)
    if o.stage is Stage.ENDED and o.actual_tpot_ms is not None and o.output_tokens >= MIN_OUTPUT_TOKENS:
        known.per_token(o, o.actual_tpot_ms)
        if ttft_ms is None or o.censored:
            return
        # What was cut off would have taken longer: that is only news where it took long already.
        lasted_ms = ttft_ms + (o.output_tokens - 1) * o.actual_tpot_ms
        if o.outcome is Outcome.FINISHED or lasted_ms > p.total_p95_ms:
            known.missed_all_by(o, ttft_ms, o.actual_tpot_ms)


def expected_cached_tokens(node: NodeState, variant: Variant, query: RouteQuery) -> int:
    """Prompt tokens expected to be warm: the session's last turn there, or matched prefix blocks.

    At least one token is always computed: the last one yields the first output.
    """
    blocks, session = 0, query.session
    hashes = query.analysis.prefix_hashes
    if hashes and node.prefix_blocks:
        blocks = matched_blocks(hashes, node.prefix_blocks)
    tokens = blocks * BLOCK_TOKENS
    if session is not None and session.tokens > tokens and _is_warm(session, node, variant, blocks):
        tokens = session.tokens
    limit = query.analysis.prompt_tokens - 1
    return min(tokens, limit) if limit > 0 else 0


def _is_warm(session: SessionHint, node: NodeState, variant: Variant, blocks: int) -> bool:
    """Whether the session's last turn ran there and is still held; `blocks` of the prompt are, by name."""
    announced = node.announcement
    return (
        session.node_id == announced.node_id
        and session.variant_digest == variant.digest
        and session.boot_id in ("", announced.boot_id)
        and (blocks >= session.blocks or session.fresh or not node.names_blocks)
    )
