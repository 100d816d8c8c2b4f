"""What comes back for one attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tidegate.routing.domain import AttemptKey, Cause, Failure, Finish, SequenceOutput
from tidegate.routing.embedding import MAX_VECTOR_BYTES

# The consumer gives credit back in handfuls, so that it does not cost a message per chunk; with few credits
# in smaller ones, or the node would wait for the rest of a handful that cannot come.
CREDIT_BATCH = 16
# No token of any vocabulary is longer; beyond it a node's text is not an answer.
MAX_TOKEN_CHARS = 256
TEXT_SLACK_CHARS = 4096


class AttemptStream:
    """The outputs of one attempt, in order. One consumer.

    `credits` is what the node may send ahead, `start_index` its first output index. `grant` sends it more,
    `cancel` frees the sequence there; both are non-blocking.
    """

    def __init__(
        self,
        key: AttemptKey,
        credits: int,
        *,
        max_tokens: int,
        start_index: int = 0,
        grant: Callable[[AttemptKey, int], None],
        cancel: Callable[[AttemptKey], None],
    ) -> None:
        self.key = key
        self._grant_after = max(1, min(CREDIT_BATCH, credits // 2))
        self._grant = grant
        self._cancel = cancel
        self._outputs: asyncio.Queue[SequenceOutput] = asyncio.Queue()
        self._consumed = 0
        self._put_index = start_index
        self._credits = credits
        self._unread = 0
        self._text_chars = 0
        self._text_limit = TEXT_SLACK_CHARS + MAX_TOKEN_CHARS * max_tokens
        self.ended = False

    def put(self, output: SequenceOutput) -> None:
        """Called by the session for each output of this attempt.

        A node that leaves a token out or sends one twice has failed, whatever it says.
        """
        if self.ended:
            return
        if fault := self._fault(output):
            self.close()
            output = self._failure(Failure(Cause.INTERNAL, fault))
        self._put_index += output.count
        self._text_chars += len(output.text)
        self._unread += 1
        self._outputs.put_nowait(output)
        self.ended = output.finish is not None

    def fail(self, failure: Failure) -> None:
        """Ends the attempt without the node's word, for instance when its link was lost."""
        self.put(self._failure(failure))

    def _fault(self, output: SequenceOutput) -> str:
        """What a node may not send: it would fill our memory or lie to the client."""
        if output.first_index != self._put_index or output.count < 0:
            return "the node's tokens are not contiguous"
        if self._unread > self._credits:
            return "the node sent more than it had credit for"
        if len(output.vectors) > output.count * MAX_VECTOR_BYTES:
            return "the node sent more of a vector than vectors have"
        if self._text_chars + len(output.text) > self._text_limit:
            return "the node sent more text than the tokens asked for can hold"
        return ""

    def _failure(self, failure: Failure) -> SequenceOutput:
        return SequenceOutput(key=self.key, first_index=self._put_index, finish=Finish(failure))

    async def next(self) -> SequenceOutput:
        """The next output; the last one carries `finish`."""
        output = await self._outputs.get()
        self._unread -= 1
        self._consumed += 1
        if self._consumed >= self._grant_after and not self.ended:
            self._grant(self.key, self._consumed)
            self._consumed = 0
        return output

    def close(self) -> None:
        """The consumer is done; an attempt that still runs is cancelled on its node."""
        if not self.ended:
            self.ended = True
            self._cancel(self.key)
