"""Who is next among requests that wait for room: priority, then fairness between tenants, then deadlines.

Requests that may go to the same nodes share a lane. Inside a lane the highest priority waits least; inside a
priority the tenant goes first that has had the fewest tokens (start-time fair queueing: a tenant's clock
moves by what it takes, and one that comes back starts at the clock of who was served last); inside a tenant
the earliest deadline. A request that can no longer meet its budget goes behind those that still can.

Nobody starves: of all tokens that go to higher priorities a floor share is owed to the lower ones that wait,
and paid as soon as it covers the next of them. Every deadline is finite, so in its tenant's order a request
is overtaken only by those that come before its own deadline.

Pure: time is an argument.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

FLOOR_SHARE = 0.05
_NEVER_MANY = 1024


@dataclass(frozen=True, slots=True)
class Ticket:
    """One waiting request. `tokens` is what it is expected to cost, times are seconds on the caller's clock.

    `lane` is equal for requests that may go to the same nodes. Started after `start_by_s` its budget is not
    expected to be met; after `leave_by_s` it is not served at all.
    """

    number: int
    tenant: str
    lane: Hashable
    tokens: float
    arrived_s: float
    start_by_s: float
    leave_by_s: float
    priority: int = 0

    def is_late(self, now_s: float) -> bool:
        return now_s > self.start_by_s

    def due_s(self, now_s: float) -> tuple[bool, float, int]:
        """Earliest first. Who is late comes after all who are not."""
        late = self.is_late(now_s)
        return late, self.leave_by_s if late else self.start_by_s, self.number


@dataclass(slots=True)
class _Waiting:
    """One tenant's tickets in one lane and band, soonest due first; the late ones in a list of their own."""

    soon: list[tuple[float, int, Ticket]] = field(default_factory=list)
    late: list[tuple[float, int, Ticket]] = field(default_factory=list)
    tokens: float = 0.0

    def add(self, ticket: Ticket) -> None:
        insort(self.soon, (ticket.start_by_s, ticket.number, ticket))
        self.tokens += ticket.tokens

    def head(self, now_s: float) -> Ticket:
        while self.soon and self.soon[0][2].is_late(now_s):
            ticket = self.soon.pop(0)[2]
            insort(self.late, (ticket.leave_by_s, ticket.number, ticket))
        return (self.soon or self.late)[0][2]

    def last(self) -> Ticket:
        return (self.late or self.soon)[-1][2]

    def discard(self, ticket: Ticket) -> bool:
        """True when it was here."""
        for entries in (self.soon, self.late):
            for index, (_, number, _) in enumerate(entries):
                if number == ticket.number:
                    del entries[index]
                    self.tokens -= ticket.tokens
                    return True
        return False

    def before(self, ticket: Ticket) -> float:
        """Tokens of those that go before it."""
        return sum(other.tokens for due_s, _, other in self.soon if due_s <= ticket.start_by_s)

    def __len__(self) -> int:
        return len(self.soon) + len(self.late)


@dataclass(slots=True)
class _Band:
    """All of one priority: tenants' clocks in tokens, and what higher priorities owe it."""

    clock: float = 0.0
    tenants: dict[str, float] = field(default_factory=dict)
    owed: float = 0.0
    waiting: dict[Hashable, dict[str, _Waiting]] = field(default_factory=dict)

    def start(self, tenant: str) -> float:
        """Where the tenant's clock stands: never behind who was served last, so that nobody saves up."""
        return max(self.tenants.get(tenant, 0.0), self.clock)

    def head(self, lane: Hashable, now_s: float) -> Ticket:
        by_tenant = self.waiting[lane]
        heads = ((self.start(name), entries.head(now_s)) for name, entries in by_tenant.items())
        return min(heads, key=lambda h: (h[0], h[1].due_s(now_s)))[1]

    def took(self, tenant: str, tokens: float) -> None:
        self.clock = self.start(tenant)
        self.tenants[tenant] = self.clock + tokens
        if len(self.tenants) > _NEVER_MANY:
            self.tenants = {name: at for name, at in self.tenants.items() if at > self.clock}


class FairQueue:
    """At most `limit` tickets; beyond it the lowest priority's are shed. One owner."""

    def __init__(self, limit: int, *, floor_share: float = FLOOR_SHARE) -> None:
        if limit < 0:
            raise ValueError("limit must not be negative")
        if not 0.0 < floor_share < 1.0:
            raise ValueError("floor_share must be between 0 and 1")
        self._limit = limit
        self._floor_share = floor_share
        self._bands: dict[int, _Band] = {}
        self._numbers: set[int] = set()
        self._lanes: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, ticket: Ticket) -> bool:
        return ticket.number in self._numbers

    def waits_in(self, lane: Hashable) -> int:
        return self._lanes.get(lane, 0)

    def push(self, ticket: Ticket) -> Ticket | None:
        """Takes a ticket in; the one that is shed for it, which may be itself.

        Of the lowest priority, the tenant with most waiting tokens loses what it would get last.
        """
        band = self._bands.setdefault(ticket.priority, _Band())
        band.waiting.setdefault(ticket.lane, {}).setdefault(ticket.tenant, _Waiting()).add(ticket)
        self._numbers.add(ticket.number)
        self._lanes[ticket.lane] = self._lanes.get(ticket.lane, 0) + 1
        if len(self._numbers) <= self._limit:
            return None
        lowest = self._bands[min(p for p, b in self._bands.items() if b.waiting)]
        heaps = (entries for by_tenant in lowest.waiting.values() for entries in by_tenant.values())
        shed = max(heaps, key=lambda entries: entries.tokens).last()
        self.remove(shed)
        return shed

    def heads(self, now_s: float) -> list[Ticket]:
        """The next of each lane, best first."""
        ranked = []
        for lane in self._lanes:
            owed, priority, head = self._next_of(lane, now_s)
            start = self._bands[priority].start(head.tenant)
            ranked.append(((not owed, -priority, start, *head.due_s(now_s)), head))
        ranked.sort(key=lambda r: r[0])
        return [head for _, head in ranked]

    def take(self, ticket: Ticket) -> None:
        """It is served now: its tenant's clock moves, and lower priorities that wait are owed their share."""
        self.remove(ticket)
        band = self._bands.setdefault(ticket.priority, _Band())
        band.took(ticket.tenant, ticket.tokens)
        band.owed = max(0.0, band.owed - ticket.tokens)
        lower = [b for p, b in self._bands.items() if p < ticket.priority and b.waiting]
        for other in lower:
            other.owed += self._floor_share * ticket.tokens / len(lower)

    def settle(self, ticket: Ticket, tokens: float) -> None:
        """It cost `tokens` in the end: the difference to what was expected goes to its tenant's clock."""
        band = self._bands.get(ticket.priority)
        if band is not None and ticket.tenant in band.tenants:
            band.tenants[ticket.tenant] += tokens - ticket.tokens

    def remove(self, ticket: Ticket) -> bool:
        """It left without being served; False when it does not wait here."""
        if ticket.number not in self._numbers:
            return False
        band = self._bands[ticket.priority]
        by_tenant = band.waiting[ticket.lane]
        entries = by_tenant[ticket.tenant]
        entries.discard(ticket)
        self._numbers.discard(ticket.number)
        if not entries:
            del by_tenant[ticket.tenant]
        if not by_tenant:
            del band.waiting[ticket.lane]
        if not band.waiting:
            band.owed = 0.0
        self._lanes[ticket.lane] -= 1
        if not self._lanes[ticket.lane]:
            del self._lanes[ticket.lane]
        return True

    def ahead_tokens(self, ticket: Ticket) -> float:
        """About how many tokens go before a ticket that joins now: all of higher priority, the tenant's own
        that are due earlier, and of each other tenant as much as fairness gives it meanwhile."""
        tokens = 0.0
        for priority, band in self._bands.items():
            by_tenant = band.waiting.get(ticket.lane, {})
            if priority > ticket.priority:
                tokens += sum(entries.tokens for entries in by_tenant.values())
            elif priority == ticket.priority:
                own = by_tenant.get(ticket.tenant)
                before = 0.0 if own is None else own.before(ticket)
                until = band.start(ticket.tenant) + before + ticket.tokens
                tokens += before
                for name, entries in by_tenant.items():
                    if name != ticket.tenant:
                        tokens += min(entries.tokens, max(0.0, until - band.start(name)))
        return tokens

    def _next_of(self, lane: Hashable, now_s: float) -> tuple[bool, int, Ticket]:
        """Whether a lower priority is paid what it is owed, its priority, and who of it goes."""
        highest: tuple[bool, int, Ticket] | None = None
        for priority, band in self._waiting_in(lane):
            head = band.head(lane, now_s)
            if highest is None:
                highest = (False, priority, head)
            elif band.owed >= head.tokens:
                return True, priority, head
        assert highest is not None, "a lane without tickets"
        return highest

    def _waiting_in(self, lane: Hashable) -> Iterator[tuple[int, _Band]]:
        """Highest priority first."""
        for priority in sorted(self._bands, reverse=True):
            band = self._bands[priority]
            if lane in band.waiting:
                yield priority, band
