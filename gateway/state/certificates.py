"""The certificates in force, read from the folder that `tidegate calibrate` writes."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from tidegate.routing.quality import Certificate

log = logging.getLogger(__name__)

IN_FORCE = "current.json"


class Certificates:
    """`refresh()` looks for a newer file; what cannot be read certifies nobody."""

    def __init__(self, folder: Path | None = None) -> None:
        self._path = None if folder is None else folder / IN_FORCE
        self._stamp: tuple[int, int] | None = None
        self.by_variant: Mapping[str, Certificate] = {}
        self.refresh()

    def refresh(self) -> None:
        """Reads the file if it changed."""
        if self._path is None:
            return
        try:
            stat = self._path.stat()
        except OSError:
            self._stamp, self.by_variant = None, {}
            return
        stamp = (stat.st_mtime_ns, stat.st_ino)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.by_variant = parse(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("certificates cannot be read, so none is in force", extra={"cause": str(error)})
            self.by_variant = {}


def parse(text: str) -> dict[str, Certificate]:
    """Raises ValueError, TypeError, KeyError or AttributeError for what is no list of certificates."""
    found = {}
    for digest, about in json.loads(text)["variants"].items():
        if about["threshold"] is None:
            continue
        certificate = Certificate(float(about["threshold"]), float(about["worse_share"]))
        if not (0.0 <= certificate.threshold <= 1.0 and 0.0 < certificate.worse_share < 1.0):
            raise ValueError(f"certificate of {digest} out of range")
        found[str(digest)] = certificate
    return found
