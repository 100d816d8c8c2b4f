"""What of the prefix cache outlives the engine's process: read at its start, written when it is asked to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from serving.engines.llama_cpp.kept_prefixes import KeptPrefixes
from serving.engines.llama_cpp.kv_state import NotCuttable
from serving.engines.llama_cpp.loop import DecodeLoop
from serving.engines.llama_cpp.native import Context, build_id
from serving.engines.llama_cpp.parking import sample_block
from serving.engines.llama_cpp.prefix import BLOCK_TOKENS
from serving.engines.llama_cpp.protocol import ChildConfig, Frame


class Keeper:
    """Does nothing without a file in the configuration, or where states cannot be cut into blocks."""

    def __init__(self, loop: DecodeLoop, config: ChildConfig, send: Callable[[Frame], None]) -> None:
        self._cache, self._send = loop.cache, send
        self._kept: KeptPrefixes | None = None
        if config.prefix_file:
            identity = f"{config.prefix_identity}\0{build_id()}"
            self._kept = KeptPrefixes(Path(config.prefix_file), config.prefix_file_bytes, identity)

    def read(self, context: Context, prefill_tokens_per_s: float) -> str:
        """Before the loop runs; what was found, in a sentence."""
        tree = self._cache.tree
        if self._kept is None or tree is None or not self._kept.path.exists():
            return ""
        try:
            sample = sample_block(context, BLOCK_TOKENS)
        except NotCuttable:
            return ""
        return self._kept.read(tree, sample, BLOCK_TOKENS * 1000.0 / prefill_tokens_per_s)

    def write(self) -> None:
        """On the loop's thread; tells the parent when it is done."""
        done = ""
        if self._kept is not None and self._cache.tree is not None:
            self._cache.park_idle()
            done = self._kept.write(self._cache.tree)
        self._send({"t": "kept", "done": done})
