"""In what order the outputs of one engine step go up the link."""

from __future__ import annotations

from tidegate.link.outbox import Outbox
from tidegate.routing.domain import AttemptKey, FirstToken, SequenceOutput

STAMPS = FirstToken(queue_ms=1.0, prefill_ms=2.0, cached_tokens=0, batch_size=3, prompt_tokens=4)


def test_first_tokens_go_first_and_the_others_keep_their_order() -> None:
    outbox = Outbox()
    keys = [AttemptKey(name, 1) for name in ("old", "older", "new", "newer")]
    for key in keys:
        outbox.open(key, 4)
    stamps = {"new": STAMPS, "newer": STAMPS}
    outbox.put(
        [SequenceOutput(key, 0, count=1, text="x", first_token=stamps.get(key.request_id)) for key in keys]
    )
    assert [output.key.request_id for output in outbox.pop()] == ["new", "newer", "old", "older"]
