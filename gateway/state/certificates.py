"""The certificates in force, read from the folder that `tidegate calibrate` writes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from tidegate.routing.certificates import NOTHING, Certified, parse

log = logging.getLogger(__name__)

IN_FORCE = "current.json"


class Certificates:
    """`refresh()` looks for a newer file; one that cannot be read changes nothing, one that is gone certifies
    nobody.

    `complexity` is the fingerprint of the model that judges prompts here, `best` gives the digest of the best
    variant now, "" while there is none. What was measured by another model, or beside another variant, is not
    in force, and the log says so once. The best variant is for each decision to compare, in the fleet that it
    decides on (tidegate.routing.quality); here it is told only.
    """

    def __init__(self, folder: Path | None, complexity: str, best: Callable[[], str]) -> None:
        self._path = None if folder is None else folder / IN_FORCE
        self._complexity = complexity
        self._best = best
        self._stamp: tuple[int, int] | None = None
        self._read = NOTHING
        self._objection = self._unreadable = ""
        self.refresh()

    @property
    def certified(self) -> Certified:
        """What counts with the complexity model here."""
        basis = self._read.basis
        return self._read if basis is not None and basis.complexity == self._complexity else NOTHING

    def refresh(self) -> None:
        """Reads the file if it changed, and tells if what it says came into force or is out of it."""
        if self._path is None:
            return
        self._look(self._path)
        objection = self._against()
        if objection != self._objection:
            self._objection = objection
            if objection:
                log.warning("certificates are not in force", extra={"cause": objection})
            elif self._read.by_variant:
                log.info("certificates are in force", extra={"variants": len(self._read.by_variant)})

    def _look(self, path: Path) -> None:
        try:
            stat = path.stat()
        except FileNotFoundError:
            self._stamp, self._read = None, NOTHING
            return
        except OSError:
            return
        stamp = (stat.st_mtime_ns, stat.st_ino)
        if stamp == self._stamp:
            return
        unreadable = ""
        try:
            self._read = parse(path.read_text(encoding="utf-8"))
            self._stamp = stamp
        except ValueError as error:
            self._stamp, unreadable = stamp, str(error)
        except OSError as error:
            unreadable = str(error)  # it may be readable the next time, without a change of the file
        if unreadable and unreadable != self._unreadable:
            log.warning(
                "certificates cannot be read, so what was in force stays", extra={"cause": unreadable}
            )
        self._unreadable = unreadable

    def _against(self) -> str:
        """Why what was read is not in force; "" where it is, and where it certifies nobody."""
        if not self._read.by_variant:
            return ""
        basis = self._read.basis
        if basis is None:
            return "they do not say by which complexity model and beside which variant: calibrate again"
        if basis.complexity != self._complexity:
            return f"they are of complexity model {basis.complexity}, here it is {self._complexity}"
        best = self._best()
        if best and best != basis.best:
            return f"they are beside {basis.best} as the best variant, now it is {best}"
        return ""
