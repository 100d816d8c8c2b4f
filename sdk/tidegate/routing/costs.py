"""What a request costs besides its tokens: the energy it takes, and what it moves over a metered link.

Only where the node reports it and the operator's table has a price. Given per million tokens of this very
request, prompt and expected answer together, so that it adds to the table's price of a million tokens:

    energy   work_w x (loading the model + prefill + answer x time per token / batch) x price of a watt-hour
    link     (1,000 + 4 per prompt token + 150 per output token) bytes x price of a megabyte

A step is shared by the sequences of its batch. 150 bytes is one token alone in a message of the link: 73 of
protobuf, the rest of it gRPC's, TLS's and TCP's frames.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidegate.routing.domain import NodeLoad, Prices
from tidegate.routing.plan import Choice, Extra
from tidegate.routing.prediction import Prediction

REQUEST_BYTES = 1_000
PROMPT_TOKEN_BYTES = 4
OUTPUT_TOKEN_BYTES = 150
# Costs that differ by less than this share of what is only estimated in them are equal.
NEAR_EXTRA_SHARE = 0.10

_MS_PER_HOUR = 3_600_000.0


def extra_cost(prices: Prices, load: NodeLoad, prediction: Prediction) -> Extra | None:
    """None where nothing comes on top."""
    power = load.power
    if power is None:
        return None
    energy = link = 0.0
    tokens = prediction.asked_tokens + prediction.output_tokens
    if prices.per_wh > 0.0 and power.work_w is not None:
        decode_ms = (prediction.output_tokens - 1.0) * prediction.tpot_ms / max(prediction.batch_size, 1)
        work_ms = prediction.wake_ms + prediction.prefill_ms + decode_ms
        energy = power.work_w * work_ms / _MS_PER_HOUR * prices.per_wh
    if power.metered:
        prompt_bytes = REQUEST_BYTES + PROMPT_TOKEN_BYTES * prediction.asked_tokens
        moved = prompt_bytes + OUTPUT_TOKEN_BYTES * prediction.output_tokens
        link = moved / 1e6 * prices.per_metered_mb
    if energy <= 0.0 and link <= 0.0:
        return None
    return Extra(energy * 1e6 / tokens, link * 1e6 / tokens)


def cheapest(choices: Sequence[Choice]) -> list[Choice]:
    """Those that cost least. What is only estimated of a cost decides nothing by a hair."""
    lowest = min([c.cost_per_mtoken for c in choices])
    cheap = [c for c in choices if c.cost_per_mtoken == lowest]
    if cheap[0].extra is None:
        return cheap
    limit = most_of(cheap[0])
    return [c for c in choices if c.cost_per_mtoken <= limit]


def most_of(choice: Choice) -> float:
    """What another choice may cost and still be as cheap."""
    extra = choice.extra
    return choice.cost_per_mtoken + (0.0 if extra is None else NEAR_EXTRA_SHARE * extra.total)
