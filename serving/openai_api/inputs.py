"""Tidegate's own inputs: `x-tidegate-*` headers and the body member `tidegate`, the body winning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from serving.openai_api.errors import invalid
from tidegate.routing.domain import OnMiss, Placement
from tidegate.wire import summary

PREFIX = summary.PREFIX


def _word(value: Any) -> Any:
    """Enum words in any case, with - for _."""
    return value.lower().replace("-", "_") if isinstance(value, str) else value


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must be printable text")
    return value


_Milliseconds = Annotated[float, Field(gt=0, le=86_400_000)]
_Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$")]
_Session = Annotated[str, StringConstraints(min_length=1, max_length=128), AfterValidator(_printable)]


class TidegateInputs(BaseModel):
    """Latency budget in milliseconds, quality and placement; unset takes the operator's level.

    Unknown names are refused: a mistyped `data_class` must not become an unrestricted request.
    """

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    ttft_ms: _Milliseconds | None = None
    tpot_ms: _Milliseconds | None = None
    total_ms: _Milliseconds | None = None
    deadline_ms: _Milliseconds | None = None
    target: Annotated[float, Field(gt=0, lt=1)] | None = None
    quality: Annotated[float, Field(ge=0, le=1)] | None = None
    placement: Annotated[Placement, BeforeValidator(_word)] | None = None
    on_miss: Annotated[OnMiss, BeforeValidator(_word)] | None = None
    data_class: _Label | None = None
    session: _Session | None = None
    priority: Annotated[int, Field(ge=-10, le=10)] | None = None
    explain: bool | None = None
    early_accept: bool | None = None
    adapter: _Label | None = None

    def over(self, other: TidegateInputs) -> TidegateInputs:
        """These inputs where they say something, `other`'s where they do not."""
        said = {name: value for name in self.model_fields_set if (value := getattr(self, name)) is not None}
        return other.model_copy(update=said)


NO_INPUTS = TidegateInputs()


def header_values(headers: Mapping[str, str]) -> dict[str, str]:
    """The inputs among `headers` by field name: {"ttft_ms": "300"}. Raises ServeError for doubles."""
    found: dict[str, str] = {}
    for header, value in headers.items():
        name = header.lower().removeprefix(PREFIX)
        if len(name) == len(header) or name in summary.NAMES:
            continue
        field = name.replace("-", "_")
        if field in found:
            raise invalid(f"The header {PREFIX}{name} may be given only once", f"{PREFIX}{name}")
        found[field] = value
    return found
