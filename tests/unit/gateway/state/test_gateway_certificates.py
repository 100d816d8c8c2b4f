"""Certificates come into force and go; what is broken or rests on something else is told once, not used."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.state.certificates import Certificates

HERE = {"complexity": "model", "best": "d-large"}
PROVEN: dict[str, Any] = {"d-small": {"threshold": 0.4, "worse_share": 0.02}, "d-tiny": {"threshold": None}}


class Store:
    """A folder as `tidegate calibrate` keeps it, and a fleet whose best variant changes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "current.json"
        self.best = "d-large"
        self.read = Certificates(folder, "model", lambda: self.best)

    def put(self, text: str) -> None:
        draft = self.path.with_suffix(".draft")
        draft.write_text(text)
        os.replace(draft, self.path)
        self.refresh()

    def refresh(self) -> None:
        for _ in range(3):
            self.read.refresh()

    @property
    def thresholds(self) -> dict[str, float]:
        return {digest: each.threshold for digest, each in self.read.certified.by_variant.items()}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.message for r in caplog.records if r.levelname == "WARNING"]


def test_certificates_come_into_force_and_go(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    assert store.thresholds == {}
    store.put(json.dumps(HERE | {"variants": PROVEN}))
    assert store.thresholds == {"d-small": 0.4}
    store.put(json.dumps(HERE | {"variants": {}}))
    assert store.thresholds == {}
    store.put(json.dumps(HERE | {"variants": PROVEN}))
    store.path.unlink()
    store.refresh()
    assert store.thresholds == {}
    assert warnings(caplog) == []


@pytest.mark.parametrize("broken", ["no json", "[1]", '{"version": 3}', "[" * 200_000])
def test_a_broken_file_changes_nothing_and_is_told_once(
    store: Store, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    store.put(json.dumps(HERE | {"variants": PROVEN}))
    store.put(broken)
    assert store.thresholds == {"d-small": 0.4}
    assert warnings(caplog) == ["certificates cannot be read, so what was in force stays"]


def same(store: Store) -> None:
    """The control."""


def better_joins(store: Store) -> None:
    store.best = "d-larger"


def nobody_is_here(store: Store) -> None:
    store.best = ""


@pytest.mark.parametrize(
    ("basis", "change", "in_force", "told"),
    [
        (HERE, same, True, ""),
        (HERE, nobody_is_here, True, ""),
        (HERE | {"complexity": "other"}, same, False, "of complexity model other, here it is model"),
        ({}, same, False, "calibrate again"),
        # That is for each decision to see; here it is told.
        (HERE, better_joins, True, "beside d-large as the best variant, now it is d-larger"),
    ],
)
def test_what_rests_on_something_else_is_not_in_force_and_told_once(
    store: Store,
    caplog: pytest.LogCaptureFixture,
    basis: dict[str, str],
    change: Callable[[Store], None],
    in_force: bool,
    told: str,
) -> None:
    change(store)
    store.put(json.dumps(basis | {"variants": PROVEN}))
    assert store.thresholds == ({"d-small": 0.4} if in_force else {})
    assert warnings(caplog) == (["certificates are not in force"] if told else [])
    assert all(told in r.cause for r in caplog.records if r.levelname == "WARNING")  # type: ignore[attr-defined]


def test_it_is_told_when_they_are_in_force_again(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    store.put(json.dumps(HERE | {"variants": PROVEN}))
    for store.best in ("d-larger", "d-large"):
        store.refresh()
    assert [r.message for r in caplog.records] == [
        "certificates are not in force",
        "certificates are in force",
    ]


def test_a_file_that_can_be_read_again_is_taken_though_it_did_not_change(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", denied)
        store.put(json.dumps(HERE | {"variants": PROVEN}))
        assert store.thresholds == {}
    assert warnings(caplog) == ["certificates cannot be read, so what was in force stays"]
    store.refresh()
    assert store.thresholds == {"d-small": 0.4}


def denied(self: Path, encoding: str) -> str:
    raise PermissionError(13, "no")
