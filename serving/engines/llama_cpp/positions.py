"""Where in a prompt the gateway's prefix blocks end: from bytes of the canonical input to tokens. Pure.

A block may only be reported as held when the tokens of all its bytes are, so its end is rounded up to whole
tokens. Inside one message's content the mapping is linear, so that escaped characters shift it a little.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from tidegate.routing.domain import Message
from tidegate.routing.prefix import BLOCK_BYTES, canonical_bytes

NamedPositions = tuple[tuple[bytes, int], ...]


def named_positions(
    names: Sequence[bytes], pieces: Sequence[bytes], messages: Sequence[Message] | None, input_bytes: int
) -> NamedPositions:
    """Each name with the number of leading tokens it stands for.

    `pieces` are the bytes of the prompt's tokens; `messages` is None when the input is the prompt itself.
    """
    if not names or not pieces:
        return ()
    ends = np.cumsum([len(piece) for piece in pieces])
    rendered = b"".join(pieces)
    anchors = _text_anchors(rendered, input_bytes) if messages is None else _chat_anchors(rendered, messages)
    at_input, at_rendered = np.array(anchors, float).T
    blocks = np.arange(1, len(names) + 1) * BLOCK_BYTES
    offsets = np.ceil(np.interp(blocks, at_input, at_rendered))
    counts = np.minimum(np.searchsorted(ends, offsets) + 1, len(pieces))
    return tuple((name, int(count)) for name, count in zip(names, counts, strict=True))


def _text_anchors(rendered: bytes, input_bytes: int) -> list[tuple[int, int]]:
    # Some tokenizers put a space in front.
    lead = max(0, len(rendered) - input_bytes)
    return [(0, lead), (input_bytes, len(rendered))]


def _chat_anchors(rendered: bytes, messages: Sequence[Message]) -> list[tuple[int, int]]:
    """(offset in the canonical bytes, offset in the rendered prompt) at both ends of every content."""
    anchors = [(0, 0)]
    start = found = 0
    for message in messages:
        line = canonical_bytes((message,))
        content = message.content.strip().encode()
        at = rendered.find(content, found) if content else -1
        if at >= 0:
            # The line ends with the content's closing quote, a bracket and the newline.
            end = start + len(line) - len(b'"]\n')
            begin = end - (len(json.dumps(message.content, ensure_ascii=False).encode()) - 2)
            anchors += [(begin, at), (end, at + len(content))]
            found = at + len(content)
        start += len(line)
    # After the last content the template adds what every continuation of the conversation has there, too.
    return [*anchors, (start + 1, len(rendered))]
