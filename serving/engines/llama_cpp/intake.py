"""From the input of work to prompt tokens, in its own thread so that a long text does not stall a step."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

import numpy as np

from serving.engines.call_grammar import is_of_calls
from serving.engines.llama_cpp.constraint import FormatError, Grammars
from serving.engines.llama_cpp.native import Model, NativeError, Tokens
from serving.engines.llama_cpp.positions import NamedPositions, named_positions
from serving.engines.llama_cpp.sequence import Prepared
from serving.engines.llama_cpp.template import ChatTemplate, PromptError
from serving.tool_syntax import CallSyntax
from tidegate.routing.domain import Cause, Failure, InputKind, Message, Work
from tidegate.routing.prefix import parse_canonical

_EMPTY = np.zeros(0, np.int32)
# No vocabulary in use has longer tokens; a text with more bytes than this per token of context cannot fit.
_MAX_TOKEN_BYTES = 512


class _TooLong(PromptError):
    """The prompt leaves no room in the context."""


class InputPreparer:
    """Renders and tokenises one work after the other and hands each to `done`, in order."""

    def __init__(
        self,
        model: Model,
        template: ChatTemplate | None,
        context_tokens: int,
        done: Callable[[Prepared], None],
    ) -> None:
        self._model = model
        self._template = template
        self._context_tokens = context_tokens
        self._done = done
        self._grammars = Grammars()
        self._waiting: queue.SimpleQueue[tuple[int, Work, float]] = queue.SimpleQueue()

    def start(self) -> None:
        threading.Thread(target=self._run, name="prepare-input", daemon=True).start()

    def put(self, sid: int, work: Work, arrived_ms: float) -> None:
        self._waiting.put((sid, work, arrived_ms))

    def _run(self) -> None:
        while True:
            sid, work, arrived_ms = self._waiting.get()
            try:
                prepared = self.prepare(sid, work, arrived_ms)
            except Exception:  # noqa: BLE001 - one input's defect must not end this thread, and all work with it
                failure = Failure(Cause.INVALID_INPUT, "the input could not be prepared")
                prepared = Prepared(sid, work, _EMPTY, 0, arrived_ms, failure)
            self._done(prepared)

    def prepare(self, sid: int, work: Work, arrived_ms: float) -> Prepared:
        """Never raises: what is wrong with the input is in the result."""
        try:
            messages = parse_canonical(work.input) if work.input_kind is InputKind.CHAT else None
            prompt, syntax = self._prompt(work, messages)
            grammar = self._grammars.text(work.format, syntax) if work.format else ""
        except (PromptError, FormatError, NativeError, ValueError, RecursionError) as error:
            detail = str(error) if isinstance(error, PromptError | FormatError) else "the input is malformed"
            cause = Cause.CONTEXT_LENGTH if isinstance(error, _TooLong) else Cause.INVALID_INPUT
            failure = Failure(cause, detail)
            return Prepared(sid, work, _EMPTY, 0, arrived_ms, failure)
        replayed = np.array(work.replay_token_ids, np.int32)
        whole = np.concatenate([prompt, replayed])
        problem = self._check(work, prompt, whole)
        names: NamedPositions = ()
        if problem is None and work.prefix_hashes:
            pieces = [self._model.piece(token) for token in prompt.tolist()]
            names = named_positions(work.prefix_hashes, pieces, messages, len(work.input))
        shown = {} if syntax is None or self._template is None else self._template.shown
        return Prepared(sid, work, whole, len(prompt), arrived_ms, problem, names, grammar, shown)

    def _prompt(self, work: Work, messages: Sequence[Message] | None) -> tuple[Tokens, CallSyntax | None]:
        """With the syntax of calls where the answer may be some and the template says in which."""
        if len(work.input) > self._context_tokens * _MAX_TOKEN_BYTES:
            raise _TooLong(
                f"a prompt of {len(work.input)} bytes cannot fit a context of {self._context_tokens} tokens"
            )
        if messages is None:
            return self._model.tokenize(work.input.decode(), add_special=True, parse_special=False), None
        if self._template is None:
            raise PromptError("the model has no chat template, so it takes text prompts only")
        prompt, syntax = self._template.prompt(messages)
        return prompt, syntax if is_of_calls(work.format.json_schema) else None

    def _check(self, work: Work, prompt: Tokens, whole: Tokens) -> Failure | None:
        cause, problem = Cause.INVALID_INPUT, ""
        if len(prompt) == 0:
            problem = "the prompt is empty"
        elif len(whole) >= self._context_tokens:
            cause = Cause.CONTEXT_LENGTH
            problem = (
                f"the prompt has {len(whole)} tokens, but the context of {self._context_tokens} tokens "
                "must hold it and at least one token of the answer"
            )
        elif len(work.replay_token_ids) != work.start_index:
            problem = f"start_index {work.start_index} needs as many tokens to replay, not " + str(
                len(work.replay_token_ids)
            )
        elif any(not 0 <= token < self._model.n_vocab for token in work.replay_token_ids):
            problem = "a token to replay is not in the vocabulary"
        return Failure(cause, problem) if problem else None
