"""Settings that both node programs share."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, field_validator

from serving.engine_settings import EngineSettings
from serving.node.power import PowerOptions
from serving.settings import ClientTlsSettings, ProgramSettings, SecretSource, Section
from tidegate.routing.domain import Tier


class LinkSettings(Section):
    """The way to the gateways. A node dials out; nothing dials in."""

    gateways: tuple[str, ...] = Field(
        default=(), description="Link addresses of the gateways as HOST:PORT; empty runs without any"
    )
    join_token: SecretSource = Field(default=SecretSource(), description="Token that lets this node join")
    tls: ClientTlsSettings | None = Field(
        default=None, description="How the gateways are trusted; without it links are plain"
    )
    direct_endpoints: tuple[str, ...] = Field(
        default=(), description="Addresses at which clients may reach this node themselves"
    )

    @field_validator("gateways")
    @classmethod
    def _addresses(cls, gateways: tuple[str, ...]) -> tuple[str, ...]:
        for address in gateways:
            host, colon, port = address.rpartition(":")
            if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise ValueError("each gateway must be written HOST:PORT, like gateway.example:50052")
        return gateways


class PowerSettings(Section):
    """What is told to gateways of electricity and the uplink; the operator's table says what they cost."""

    interval_s: float = Field(
        default=5.0, ge=0, le=3600, description="Seconds between two looks at battery and draw; 0: none"
    )
    metered: bool = Field(default=False, description="Whether the way to the gateways costs by volume")
    work_watts: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Watts drawn more while the engine computes; unset: measured where it can be read",
    )
    supply_dir: Path = Field(
        default=Path("/sys/class/power_supply"), description="Where batteries and mains are found"
    )
    powercap_dir: Path = Field(default=Path("/sys/class/powercap"), description="Where energy counters are")

    def options(self) -> PowerOptions:
        return PowerOptions(
            self.interval_s, self.metered, self.work_watts, self.supply_dir, self.powercap_dir
        )


class NodeSettings(ProgramSettings):
    """Base of the settings of edge_node and cloud_node."""

    name: str = Field(default="", description="Name of this node for people; empty takes the host's name")
    state_dir: Path | None = Field(
        default=None,
        description="Folder of the node's key; unset takes ~/.local/state/tidegate/PROGRAM (XDG_STATE_HOME)",
    )
    engine: EngineSettings = Field(default=EngineSettings(), description="What this node computes with")
    link: LinkSettings = Field(default=LinkSettings(), description="The way to the gateways")
    power: PowerSettings = Field(default=PowerSettings(), description="Electricity and the uplink's price")

    @property
    def shown_name(self) -> str:
        return self.name or socket.gethostname()

    def state_folder(self, environ: Mapping[str, str] = os.environ) -> Path:
        if self.state_dir is not None:
            return self.state_dir.expanduser()
        base = environ.get("XDG_STATE_HOME", "")
        root = Path(base) if base else Path.home() / ".local" / "state"
        return root / "tidegate" / self.program

    @property
    def tier(self) -> Tier:
        """What the node takes itself for in its own answers; the operator's word counts at the gateway."""
        return Tier.EDGE
