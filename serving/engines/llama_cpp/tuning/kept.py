"""The daemon's side of self-tuning: curves read at the start, and kept when the engine has measured."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serving.engines.llama_cpp.protocol import Frame
from serving.engines.llama_cpp.variants.curves import Bench, bench_of, hardware, load, save

_LOG = logging.getLogger(__name__)


class KeptCurves:
    """`folder` None keeps nothing. Blocks, but for `for_child`."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._bench: Bench | None = None

    def read(self, digest: str) -> None:
        self._bench = load(self._folder, digest) if self._folder is not None else None

    def for_child(self) -> dict[str, Any] | None:
        """What a child may start with. Only it knows its build."""
        bench = self._bench
        if bench is None or bench.hardware != hardware():
            return None
        curves = [asdict(curve) for curve in bench.curves]
        return {"build": bench.build, "curves": curves, "measured_s": bench.measured_s}

    def take(self, frame: Frame, model: Path, digest: str) -> None:
        """From a frame `tuned`. Raises KeyError, TypeError or ValueError for a malformed one."""
        self._bench = bench_of(model, digest, frame, time.time())
        if self._folder is None:
            return
        try:
            kept = save(self._bench, self._folder)
        except OSError as error:
            _LOG.warning("the device's speeds cannot be kept: %s", error.strerror)
            return
        _LOG.info("measured this device: %d threads are best (%s)", frame["threads"], kept)
