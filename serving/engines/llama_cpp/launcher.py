"""What a child is started from: checks the files, spawns the process, and waits until it is ready."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp.catalog import CatalogEntry, file_digest, file_stamps, read_entry
from serving.engines.llama_cpp.fit import check_model, derive, memory_limit_bytes
from serving.engines.llama_cpp.gguf_check import GgufHeader
from serving.engines.llama_cpp.identity import adapter_identities
from serving.engines.llama_cpp.process import ChildProcess
from serving.engines.llama_cpp.protocol import MALFORMED, ChildConfig, Frame
from serving.engines.llama_cpp.settings import LlamaCppSettings
from serving.engines.llama_cpp.slow_kernel import fast_copy
from serving.engines.llama_cpp.tuning.kept import KeptCurves
from tidegate.routing.domain import Speeds

_LOG = logging.getLogger(__name__)


class Launched(NamedTuple):
    """A child that is ready, its first frame, and how long the load took without what is not part of one."""

    child: ChildProcess
    ready: Frame
    load_ms: float


class Launcher:
    """One model and its adapters. `prepare()` comes first, and again after `requantize()`."""

    def __init__(self, settings: LlamaCppSettings, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.digest = ""
        self.adapters: Sequence[str] = ()
        self.kept = KeptCurves(settings.kept_in)
        self._clock = clock
        self._memory_limit_bytes = 0
        self._stamps: Sequence[object] = ()

    async def prepare(self) -> tuple[GgufHeader, CatalogEntry | None]:
        """Derives what is left open, checks that the model fits, names it. Raises EngineUnavailable."""
        path = self.settings.model_path
        if self.settings.leaves_open:
            self.settings = await asyncio.to_thread(derive, self.settings)
        header = await asyncio.to_thread(check_model, self.settings)
        self._memory_limit_bytes = await asyncio.to_thread(memory_limit_bytes, self.settings)
        # Before anything is read of them.
        self._stamps = await asyncio.to_thread(file_stamps, self._files())
        self.adapters = await asyncio.to_thread(adapter_identities, self.settings.adapters)
        entry = await asyncio.to_thread(read_entry, path)
        self.digest = entry.digest if entry else await asyncio.to_thread(file_digest, path)
        await asyncio.to_thread(self.kept.read, self.digest)
        return header, entry

    async def requantize(self) -> None:
        """From now on the faster copy is what is served. Raises EngineUnavailable."""
        settings = self.settings
        faster = await asyncio.to_thread(
            fast_copy, settings.model_path, settings.model, max(1, settings.threads), _LOG.info
        )
        self.settings = settings.model_copy(update={"model_path": faster})

    async def launch(self, known: Speeds) -> Launched:
        """`known`: the speeds of an earlier child, if there was one. Raises EngineUnavailable."""
        await self._check_stamps()
        began = self._clock()
        try:
            config = self._config(known)
            child = await ChildProcess.spawn(config, bounded_spin=self.settings.bounded_spin)
        except OSError as error:
            raise EngineUnavailable(f"the engine process cannot be started: {error}") from error
        try:
            ready = await self._first_frame(child)
            later_ms = float(ready["measure_ms"]) + float(ready.get("pinned_ms", 0.0))
            return Launched(child, ready, max((self._clock() - began) * 1000.0 - later_ms, 1.0))
        except TimeoutError:
            await child.end(0.0)
            raise EngineUnavailable(
                f"the model did not load within {self.settings.load_timeout_s:g} s (load_timeout_s)"
            ) from None
        except MALFORMED as error:
            await child.end(0.0)
            raise unusable(error) from error
        except BaseException:
            await child.end(0.0)
            raise

    def _files(self) -> Sequence[Path]:
        """All that the child reads, the model first."""
        return (self.settings.model_path, *(adapter.path for adapter in self.settings.adapters))

    async def _check_stamps(self) -> None:
        files = self._files()
        stamps = await asyncio.to_thread(file_stamps, files)
        for path, now, before in zip(files, stamps, self._stamps, strict=True):
            if now != before:
                raise EngineUnavailable(
                    f"{path} is not the file any more that this node announced: restart it"
                )

    def _config(self, known: Speeds) -> ChildConfig:
        identity = ""
        if self.settings.prefix_file is not None:
            identity = "\0".join((self.digest, self.settings.kv_type, *self.adapters))
        config = dataclasses.replace(
            self.settings.child_config(),
            memory_limit_bytes=self._memory_limit_bytes,
            kept=self.kept.for_child(),
            prefix_identity=identity,
        )
        if not known.decode:
            return config
        return dataclasses.replace(config, known_speeds=(known.prefill_tokens_per_s, known.decode))

    async def _first_frame(self, child: ChildProcess) -> Frame:
        async with asyncio.timeout(self.settings.load_timeout_s):
            ready = await child.receive()
        if ready is None or ready["t"] != "ready":
            detail = "its process died while loading (out of memory?)" if ready is None else ready["detail"]
            raise EngineUnavailable(f"the model {self.settings.model_path} cannot be loaded: {detail}")
        return ready


def unusable(error: Exception) -> EngineUnavailable:
    """A first frame that is not as agreed."""
    return EngineUnavailable(
        f"the engine process sent a first frame that cannot be used ({type(error).__name__})"
    )


def tell_of(child: ChildProcess, ready: Frame, settings: LlamaCppSettings) -> None:
    """What an operator wants to know of a child that is ready, in the log."""
    _LOG.info(
        "engine child %d is ready, %d slots of %d tokens (%s): loaded in %.0f ms, measured in %.0f ms",
        child.pid,
        settings.slots,
        ready["context_tokens"],
        settings.kv_type,
        ready["load_ms"],
        ready["measure_ms"],
    )
    if settings.pinned_prompts:
        _LOG.info("%d tokens are pinned, in %.0f ms", ready["pinned_tokens"], ready["pinned_ms"])
    if ready.get("pins_late"):
        _LOG.warning("not all pinned prompts are computed: the rest is when nothing else is to do")
    if ready.get("prefixes"):
        _LOG.info("%s", ready["prefixes"])
    for why in ready.get("not_pinned", ()):
        _LOG.warning("a pinned prompt is left out: %s", why)
    if ready.get("exposed"):
        _LOG.warning("the engine child can reach the network and start programs: %s", ready["exposed"])
