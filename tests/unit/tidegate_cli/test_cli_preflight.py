"""What a machine must have."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidegate_cli.stack import ChildFailed
from tidegate_cli.stack.preflight import available_mb, check_machine, check_room, valkey_binary

MEMINFO = "MemTotal: 8000000 kB\nMemFree: 1 kB\nMemAvailable: 2000000 kB\n"


def test_this_machine_can_run_the_stack() -> None:
    check_machine("oracle")
    assert valkey_binary().is_file()


def test_too_little_is_one_line_that_says_what_to_do() -> None:
    with pytest.raises(ChildFailed, match=r"^1500 MB needed, 300 MB left of memory: close other programs$"):
        check_room(1500, 300, "memory: close other programs")
    check_room(1500, 1500, "memory")
    check_room(1500, None, "memory")


def test_memory_is_what_programs_may_still_take(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(MEMINFO)
    assert available_mb(meminfo, tmp_path) == pytest.approx(2048)


def test_a_container_s_limit_counts_and_its_file_pages_do_not(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(MEMINFO)
    (tmp_path / "memory.max").write_text("1000000000\n")
    (tmp_path / "memory.current").write_text("900000000\n")
    (tmp_path / "memory.stat").write_text("anon 300000000\nfile 600000000\n")
    assert available_mb(meminfo, tmp_path) == pytest.approx(700)
    (tmp_path / "memory.max").write_text("max\n")
    assert available_mb(meminfo, tmp_path) == pytest.approx(2048)


def test_a_system_that_does_not_tell_stops_nobody(tmp_path: Path) -> None:
    assert available_mb(tmp_path / "none", tmp_path) is None
    (tmp_path / "meminfo").write_text("nothing of use")
    assert available_mb(tmp_path / "meminfo", tmp_path) is None
