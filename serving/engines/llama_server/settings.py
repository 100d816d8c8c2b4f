"""What an operator sets about a managed server, and the command line that follows from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tidegate.routing.domain import Speeds

HOST = "127.0.0.1"
# llama-server's words. A cache of its own per slot, so that slots times context is what the plan says.
_LLAMA_SERVER = (
    *("{program}", "--model", "{model}", "--alias", "{name}", "--host", "{host}", "--port", "{port}"),
    *("--parallel", "{slots}", "--ctx-size", "{total_context}"),
    *("--threads", "{threads}", "--threads-batch", "{threads}", "--n-gpu-layers", "{n_gpu_layers}"),
    *("--cache-type-k", "{kv_type}", "--cache-type-v", "{kv_type}", "--no-webui", "--metrics"),
)
# Where servers look for the key that they ask of their clients; on a command line everybody could read it.
_KEY_VARIABLES = ("LLAMA_API_KEY", "VLLM_API_KEY", "API_KEY")


@dataclass(frozen=True, slots=True)
class LlamaServerSettings:
    """One GGUF model served by a child that speaks the OpenAI protocol.

    `command` replaces llama-server's whole command line; `options` are appended to either. Both may hold
    {program}, {model}, {name}, {host}, {port}, {slots}, {context} and {total_context} (tokens a slot and in
    all), {threads}, {n_gpu_layers} and {kv_type}. Times are seconds. Without any output for `hang_timeout_s`
    while work runs, or as long without a healthy answer, the server is ended and started again.
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
    fit_check: bool = True
    debug: bool = False

    def __post_init__(self) -> None:
        if self.slots < 1 or self.queue_limit < 0:
            raise ValueError("slots must be at least 1 and queue_limit at least 0")
        try:
            self.command_line(0)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"command and options: {error} is no known placeholder; write {{{{ for a brace"
            ) from None

    def command_line(self, port: int) -> list[str]:
        """What is executed, with everything filled in."""
        values: Mapping[str, object] = {
            "program": self.program,
            "model": self.model_path,
            "name": self.model,
            "host": HOST,
            "port": port,
            "slots": self.slots,
            "context": self.context_tokens,
            "total_context": self.slots * self.context_tokens,
            "threads": self.threads,
            "n_gpu_layers": self.n_gpu_layers,
            "kv_type": self.kv_type,
        }
        words = (*(self.command or _LLAMA_SERVER), *self.options)
        return [word.format_map(values) for word in words]

    def replay_digest(self, file_digest: str, build: str) -> str:
        """Hashes what answers depend on: the same wherever the files lie and however many run at once."""
        elsewhere = replace(self, model_path=Path(), program="", model="", slots=1, threads=1)
        parts = (file_digest, build, *elsewhere.command_line(0))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def key_environment(key: str) -> dict[str, str]:
    """The variables that make the server ask for `key`."""
    return dict.fromkeys(_KEY_VARIABLES, key)
