"""Real daemon processes for the tests of this folder, ended with them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from edge_daemon_process import DaemonMaker


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[DaemonMaker]:
    with contextlib.ExitStack() as stack:
        yield DaemonMaker(tmp_path, stack)
