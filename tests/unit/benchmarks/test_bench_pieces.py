"""Measurements in pieces."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.common import CannotMeasure
from benchmarks.pieces import Piece, Pieces


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("a = 1\n")
    return tmp_path / "code"


def test_what_was_measured_is_not_measured_again(folder: Path) -> None:
    made: list[str] = []

    def make(name: str) -> Piece:
        made.append(name)
        return {"name": name}

    tasks = {name: lambda name=name: make(name) for name in ("a", "b")}
    with pytest.raises(CannotMeasure, match="2 of 2"):
        Pieces("x", for_s=0.0, folders=[folder]).all_of(tasks)
    for _ in range(2):
        found = Pieces("x", for_s=60.0, folders=[folder]).all_of(tasks)
        assert found == {"a": {"name": "a"}, "b": {"name": "b"}}
    assert made == ["a", "b"]


def test_other_code_makes_it_void(folder: Path) -> None:
    values = iter((1, 2))
    tasks = {"a": lambda: {"value": next(values)}}
    assert Pieces("x", for_s=60.0, folders=[folder]).all_of(tasks) == {"a": {"value": 1}}
    (folder / "a.py").write_text("a = 2\n")
    assert Pieces("x", for_s=60.0, folders=[folder]).all_of(tasks) == {"a": {"value": 2}}
