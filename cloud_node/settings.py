"""Settings of the cloud node."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from serving.engine_settings import EngineSettings
from serving.node_settings import NodeSettings
from serving.settings import ListenSettings, SecretSource
from tidegate.routing.domain import Tier

_OWN_CONTEXT_TOKENS = 2048


class CloudEngineSettings(EngineSettings):
    """What a cloud node computes with: by default somebody else's server."""

    kind: Literal["llama_cpp", "llama_server", "openai_http", "oracle"] = Field(
        default="openai_http",
        description="Engine: an OpenAI-compatible server that runs already, llama.cpp in this node, "
        "llama-server as its child, or the test oracle",
    )
    slots: int = Field(default=16, ge=1, description="Sequences that run at once; more wait in this node")
    queue_limit: int = Field(default=64, ge=0, description="Sequences that may wait for a slot")
    context_tokens: int = Field(
        default=0,
        ge=0,
        description="Prompt and answer together, in tokens; 0 asks the OpenAI-compatible server, and is "
        f"{_OWN_CONTEXT_TOKENS} for the other kinds",
    )

    @model_validator(mode="before")
    @classmethod
    def _own_engines_need_a_context(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("kind", "openai_http") != "openai_http":
            return {"context_tokens": _OWN_CONTEXT_TOKENS, **values}
        return values

    def _may_be_unset(self) -> bool:
        return self.kind == "openai_http" and self.context_tokens == 0


class AdminSettings(ListenSettings):
    """Health and metrics for whoever runs this node."""

    key: SecretSource = Field(
        default=SecretSource(), description="Key that /metrics wants as a bearer token; health needs none"
    )


class CloudSettings(NodeSettings):
    program: ClassVar[str] = "cloud"

    engine: CloudEngineSettings = Field(
        default=CloudEngineSettings(), description="What this node computes with"
    )
    admin: AdminSettings | None = Field(
        default=None, description="Listener of /healthz, /readyz and /metrics; unset has none"
    )

    @property
    def tier(self) -> Tier:
        return Tier.CLOUD
