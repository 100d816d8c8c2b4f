"""Which of the server's models stands behind a variant, and how long its context is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from serving.engines.openai_http.failures import upstream_failed
from serving.engines.openai_http.settings import unnamed_digest
from serving.engines.openai_http.wire import whole
from tidegate.routing.domain import Variant

_log = logging.getLogger(__name__)
_UNKNOWN_CONTEXT_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One row of /v1/models; `context_tokens` 0 when the server does not say."""

    name: str
    context_tokens: int


def parse_models(answer: Any) -> tuple[ListedModel, ...]:
    """Raises UpstreamFailed when `answer` is no list of models."""
    rows = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(rows, list):
        raise upstream_failed("its /models answer is not a list of models")
    return tuple(
        ListedModel(row["id"], whole(row.get("max_model_len")))
        for row in rows
        if isinstance(row, dict) and isinstance(row.get("id"), str)
    )


def settle_model(name: str, variant: Variant, listed: Sequence[ListedModel]) -> tuple[str, Variant]:
    """The upstream model's name ("" takes the first listed), and the variant with what it lacked.

    A variant without a name takes the server's, one without a digest the hash of its name.

    A name that is not listed is only warned about: some servers answer to any. Raises UpstreamFailed when
    there is no name at all.
    """
    if not name:
        if not listed:
            raise upstream_failed("it lists no models, so the upstream model's name must be set")
        name = listed[0].name
    row = next((row for row in listed if row.name == name), None)
    if row is None and listed:
        _log.warning("the upstream server does not list the model", extra={"model": name})
    model = variant.model or name
    variant = replace(variant, model=model, digest=variant.digest or unnamed_digest(model))
    if variant.context_tokens <= 0:
        context = row.context_tokens if row is not None else 0
        variant = replace(variant, context_tokens=context or _UNKNOWN_CONTEXT_TOKENS)
    return name, variant
