"""What a gateway sends down a link, as values; the transport encodes them."""

from __future__ import annotations

from dataclasses import dataclass

from tidegate.routing.domain import AttemptKey, Work


@dataclass(frozen=True, slots=True)
class CancelCommand:
    key: AttemptKey


@dataclass(frozen=True, slots=True)
class FenceCommand:
    key: AttemptKey


@dataclass(frozen=True, slots=True)
class DrainCommand:
    pass


@dataclass(frozen=True, slots=True)
class PingCommand:
    nonce: int


@dataclass(frozen=True, slots=True)
class CacheResyncCommand:
    pass


ControlCommand = CancelCommand | FenceCommand | DrainCommand | PingCommand | CacheResyncCommand


@dataclass(frozen=True, slots=True)
class WorkCommand:
    """Head of a work with the first part of its input."""

    work: Work
    first_fragment: bytes


@dataclass(frozen=True, slots=True)
class FragmentCommand:
    key: AttemptKey
    data: bytes


@dataclass(frozen=True, slots=True)
class CreditCommand:
    key: AttemptKey
    chunks: int


DataCommand = WorkCommand | FragmentCommand | CreditCommand
