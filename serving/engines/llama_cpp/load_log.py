"""What llama.cpp tells in its log only: how a model was laid out here, and on which GPUs."""

from __future__ import annotations

import re
import sys

from serving.engines.llama_cpp.native import C, silence_log

# llama_model_load_from_file_impl: using device CUDA0 (NVIDIA L4) (0000:00:03.0) - 22500 MiB free
_DEVICE = re.compile(rb"using device \S+ \((.*)\) \([^()]*\) - \d+ MiB free")
_REPACKED = re.compile(rb"REPACK model buffer size = *([0-9.]+) MiB")


class LoadLog:
    """Reads the log from its making until close(); `echo` also writes it to standard error."""

    def __init__(self, *, echo: bool = False) -> None:
        self.repacked_bytes = 0
        self.gpus: list[str] = []
        self._echo = echo
        # llama.cpp calls it for as long as it is set.
        self._callback = C.llama_log_callback(self._take)
        C.llama_log_set(self._callback, None)

    def close(self) -> None:
        """With `echo` it goes on writing for as long as this object lives."""
        if not self._echo:
            silence_log()

    def _take(self, _level: int, text: bytes, _data: object) -> None:
        if self._echo:
            sys.stderr.write(text.decode("utf-8", "replace"))
        if found := _REPACKED.search(text):
            self.repacked_bytes += int(float(found[1]) * 1024 * 1024)
        elif found := _DEVICE.search(text):
            self.gpus.append(found[1].decode("utf-8", "replace"))
