"""What an operator sets about a managed server, and the command line that follows from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from serving.engines.openai_http import OpenAiHttpSettings
from tidegate.routing.domain import Speeds, Variant

# llama-server's words. A cache of its own per slot, so that slots times context is what the plan says; so are
# its threads and what it keeps of former prompts, by default 8 GiB.
_LLAMA_SERVER = (
    *("{program}", "--model", "{model}", "--alias", "{name}", "--host", "{socket}"),
    *("--parallel", "{slots}", "--ctx-size", "{total_context}"),
    *("--threads", "{threads}", "--threads-batch", "{threads}", "--n-gpu-layers", "{n_gpu_layers}"),
    *("--cache-type-k", "{kv_type}", "--cache-type-v", "{kv_type}", "--no-webui", "--metrics"),
    *("--threads-http", "{http_threads}", "--cache-ram", "{kept_mib}"),
)
# Beside the slots' streams: health, metrics, and one answer that ends while the next one begins.
_FURTHER_HTTP_THREADS = 4
# On the same machine a probe costs next to nothing.
_HEALTH_INTERVAL_S = 0.2
_NOWHERE = Path("server.sock")


@dataclass(frozen=True, slots=True)
class LlamaServerSettings:
    """One GGUF model served by a child that speaks the OpenAI protocol.

    `command` replaces llama-server's whole command line; `options` are appended to either. Both may hold
    {program}, {model}, {name}, {socket}, {slots}, {context} and {total_context} (tokens a slot and in all),
    {threads}, {n_gpu_layers} and {kv_type}; a `command` must listen on {socket}. `memory_limit_mib` is what
    the process may write to: 0 derives it from the model, -1 is none. Times are seconds. Without any output
    for `hang_timeout_s` while work runs, or as long without a healthy answer, the server is ended and started
    again.
    """

    model_path: Path
    model: str
    aliases: tuple[str, ...] = ()
    program: str = "llama-server"
    options: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    slots: int = 4
    queue_limit: int = 16
    context_tokens: int = 2048
    threads: int = 1
    n_gpu_layers: int = 0
    kv_type: str = "f16"
    hardware_class: str = ""
    speeds: Speeds = Speeds(200.0, ((1, 20.0),))
    start_timeout_s: float = 120.0
    hang_timeout_s: float = 60.0
    restart_backoff_max_s: float = 30.0
    memory_limit_mib: int = 0
    fit_check: bool = True
    debug: bool = False

    def __post_init__(self) -> None:
        if self.slots < 1 or self.queue_limit < 0:
            raise ValueError("slots must be at least 1 and queue_limit at least 0")
        if self.command and not any("{socket}" in word for word in self.command):
            raise ValueError("command: no word of it says {socket}, where the server must listen")
        try:
            self.command_line(_NOWHERE)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"command and options: {error} is no known placeholder; write {{{{ for a brace"
            ) from None

    @property
    def helpers(self) -> bool:
        """Whether it may start programs and speak with local ones, as GPUs' drivers and other servers do."""
        return self.n_gpu_layers != 0 or bool(self.command)

    def command_line(self, socket: Path, kept_mib: int = 0) -> list[str]:
        """What is executed, with everything filled in. `kept_mib`: memory for former prompts."""
        values: Mapping[str, object] = {
            "program": self.program,
            "model": self.model_path,
            "name": self.model,
            "socket": socket,
            "slots": self.slots,
            "context": self.context_tokens,
            "total_context": self.slots * self.context_tokens,
            "threads": self.threads,
            "http_threads": self.slots + _FURTHER_HTTP_THREADS,
            "kept_mib": kept_mib,
            "n_gpu_layers": self.n_gpu_layers,
            "kv_type": self.kv_type,
        }
        words = (*(self.command or _LLAMA_SERVER), *self.options)
        return [word.format_map(values) for word in words]

    def of_client(self, variant: Variant, speeds: Speeds, socket: Path) -> OpenAiHttpSettings:
        """How its server is spoken with."""
        return OpenAiHttpSettings(
            base_url="http://localhost/v1",
            socket=str(socket),
            variant=variant,
            speeds=speeds,
            slots=self.slots,
            queue_limit=self.queue_limit,
            hardware_class=self.hardware_class or "llama-server",
            selftest=True,
            is_llama_server=not self.command,
            health_interval_s=_HEALTH_INTERVAL_S,
            start_timeout_s=self.start_timeout_s,
            # Whether the whole server hangs is judged by its owner; these only bound a single sequence.
            first_delta_timeout_s=4.0 * self.hang_timeout_s,
            idle_timeout_s=4.0 * self.hang_timeout_s,
        )

    def replay_digest(self, file_digest: str, build: str) -> str:
        """Hashes what answers depend on: the same wherever the files lie and however many run at once."""
        elsewhere = replace(self, model_path=Path(), program="", model="", slots=1, threads=1)
        parts = (file_digest, build, *elsewhere.command_line(_NOWHERE))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()
