from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cloud_processes import Programs

# The third-party server is the one of the engine's contract.
sys.path.append(str(Path(__file__).resolve().parents[2] / "contracts"))


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    with contextlib.ExitStack() as stack:
        yield Programs(tmp_path, stack)
