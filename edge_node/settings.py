"""Settings of the device daemon."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from serving.node_settings import NodeSettings
from serving.settings import ListenSettings, SecretSource, Section

DEFAULT_PORT = 11435


class ApiKeySettings(Section):
    """A key to the local API."""

    secret: SecretSource = Field(description="Where the key is kept")
    tenant: str = Field(default="default", min_length=1, description="Tenant of requests with this key")
    admin: bool = Field(default=False, description="May read metrics and explanations from beyond loopback")


class LocalApiSettings(ListenSettings):
    """The device's own OpenAI-compatible API."""

    port: int = Field(default=DEFAULT_PORT, ge=0, le=65535, description="TCP port; 0 takes a free one")
    allowed_hosts: tuple[str, ...] = Field(
        default=(),
        description="Further host names this API is reached by; others are refused, against DNS rebinding",
    )
    keys: tuple[ApiKeySettings, ...] = Field(
        default=(), description="Keys of the API; none lets every local program in"
    )


class EdgeSettings(NodeSettings):
    program: ClassVar[str] = "edge"

    local_api: LocalApiSettings = Field(default=LocalApiSettings(), description="The device's own API")
