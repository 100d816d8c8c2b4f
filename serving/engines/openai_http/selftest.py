"""The short request an engine may send at start."""

from __future__ import annotations

from tidegate.routing.domain import AttemptKey, InputKind, Message, Role, Sampling, Work
from tidegate.routing.prefix import canonical_bytes

_QUESTION = "Answer with the numbers from one to nine in words, separated by blanks, and say nothing else."


def selftest_work(variant_digest: str) -> Work:
    return Work(
        key=AttemptKey("selftest", 1),
        tenant="",
        variant_digest=variant_digest,
        input_kind=InputKind.CHAT,
        input=canonical_bytes([Message(Role.USER, _QUESTION)]),
        sampling=Sampling(temperature=0.0),
        max_tokens=16,
    )
