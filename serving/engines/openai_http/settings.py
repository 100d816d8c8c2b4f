"""What the engine must know about the server it stands in front of."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tidegate.routing.domain import ReplayClass, Speeds, Variant

_VERSION_SEGMENT = re.compile(r"v\d+\w*")


@dataclass(frozen=True, slots=True)
class OpenAiHttpSettings:
    """`base_url` may end in the API's version (`.../v1`) or not; `upstream_model` "" takes the first listed.

    `slots` requests run upstream at once and `queue_limit` more wait here. `speeds` is believed until real
    work has taught better. `cache_tokens` 0 takes what the server's metrics say, else slots x context.
    `ca_file` trusts a private CA. `socket` is the path of a local socket that is dialled instead of the
    address. Timeouts are seconds: `first_delta_timeout_s` bounds the server's own queue plus its prefill,
    `idle_timeout_s` the silence between two deltas. `is_llama_server` asks for its timings with every delta,
    and looks for stop strings here: at the end of an answer that server forgets text that could have become
    one. `prefix_guess_s` is how long a computed prefix is taken to be still warm there; 0 takes none to be.
    """

    base_url: str
    variant: Variant
    speeds: Speeds
    upstream_model: str = ""
    api_key: str = field(default="", repr=False)
    ca_file: str = ""
    socket: str = ""
    slots: int = 8
    queue_limit: int = 64
    hardware_class: str = "openai-http"
    replay_class: ReplayClass = ReplayClass.NONE
    include_usage: bool = True
    cache_tokens: int = 0
    selftest: bool = False
    is_llama_server: bool = False
    prefix_guess_s: float = 300.0
    connect_timeout_s: float = 5.0
    start_timeout_s: float = 60.0
    first_delta_timeout_s: float = 120.0
    idle_timeout_s: float = 20.0
    health_interval_s: float = 1.0
    health_timeout_s: float = 2.0
    metrics_interval_s: float = 1.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("base_url must be an http or https address, like http://localhost:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("base_url must carry no user name, password or query: set the API key instead")
        if not self.api_key.isascii() or any(not c.isprintable() or c.isspace() for c in self.api_key):
            raise ValueError("the API key must be printable ASCII without blanks")
        if self.slots < 1 or self.queue_limit < 0:
            raise ValueError("slots must be at least 1 and queue_limit at least 0")
        if self.prefix_guess_s < 0.0:
            raise ValueError("prefix_guess_s must not be negative")
        if self.replay_class is ReplayClass.TOKENS:
            raise ValueError("an OpenAI-compatible server cannot replay token ids: use none or text")

    @property
    def api_url(self) -> str:
        """Where /chat/completions hangs, without a trailing slash."""
        url = self.base_url.rstrip("/")
        return url if _VERSION_SEGMENT.fullmatch(url.rsplit("/", 1)[-1]) else f"{url}/v1"

    @property
    def root_url(self) -> str:
        """Where /health and /metrics hang, without a trailing slash."""
        return self.api_url.rsplit("/", 1)[0]


def unnamed_digest(model: str) -> str:
    """The variant digest of a model whose file nobody here has seen: a hash of its name."""
    return "name-sha256:" + hashlib.sha256(model.encode("utf-8")).hexdigest()
