from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp import catalog
from serving.engines.llama_cpp.bundled import MODEL, bundled_model, default_models_dir
from serving.engines.llama_cpp.catalog import CatalogEntry, entry_path, file_digest, load_entry, read_entry
from serving.engines.llama_cpp.prepare import CALIBRATION_TEXT, main, prepare


def entry_of(path: Path) -> CatalogEntry:
    stat = path.stat()
    return CatalogEntry("m", "Q4_0", file_digest(path), stat.st_size, stat.st_mtime_ns, 2048, 30.0)


def test_an_entry_holds_until_its_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"one")
    assert read_entry(path) is None
    catalog.write_entry(path, entry_of(path))
    assert read_entry(path) == entry_of(path)
    path.write_bytes(b"three")
    assert read_entry(path) is None
    assert load_entry(path) is not None
    path.unlink()
    assert read_entry(path) is None


@pytest.mark.parametrize("text", ["", "[]", '{"model": "m"}', "{", "null"])
def test_a_damaged_entry_is_no_entry(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"one")
    entry_path(path).write_text(text)
    assert load_entry(path) is None


def test_unknown_members_of_an_entry_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"one")
    catalog.write_entry(path, entry_of(path))
    text = entry_path(path).read_text()
    entry_path(path).write_text(text.replace("{", '{"later": 1,', 1))
    assert read_entry(path) == entry_of(path)


def test_variants_are_made_once_and_measured(tmp_path: Path) -> None:
    first = prepare(bundled_model(), ["Q4_0", "Q8_0"], default_models_dir(), model=MODEL)
    lines: list[str] = []
    again = prepare(
        bundled_model(), ["Q4_0", "Q8_0"], default_models_dir(), model=MODEL, progress=lines.append
    )
    assert again == first
    assert not any("quantizing" in line or "measuring" in line for line in lines)
    q4, q8 = (variant.entry for variant in again)
    assert q4.digest == file_digest(again[0].path)
    assert q4.perplexity is not None
    assert q8.perplexity is not None
    assert 5.0 < q8.perplexity < q4.perplexity < 60.0
    assert q4.context_tokens == 8192


def test_a_changed_file_is_made_again(tmp_path: Path) -> None:
    """The entry is right, the file is not: the positive control of the digest check."""
    (kept,) = prepare(bundled_model(), ["Q4_0"], default_models_dir(), model=MODEL)
    path = tmp_path / kept.path.name
    shutil.copy2(kept.path, path)
    with path.open("r+b") as file:
        file.seek(-100, 2)
        file.write(b"\x55" * 50)
    catalog.write_entry(path, kept.entry)
    lines: list[str] = []
    (made,) = prepare(bundled_model(), ["Q4_0"], tmp_path, model=MODEL, progress=lines.append)
    assert any("quantizing" in line for line in lines)
    assert made.entry.digest == kept.entry.digest == file_digest(path)
    assert not list(tmp_path.glob(".*.tmp"))


def test_an_unknown_quantization_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(bundled_model()), "--to", "Q77", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "knows no quantization Q77" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("*.gguf"))


def test_a_source_cut_short_is_a_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "cut.gguf"
    with bundled_model().open("rb") as whole:
        source.write_bytes(whole.read(20_000_000))
    with pytest.raises(EngineUnavailable):
        prepare(source, ["Q4_0"], tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.gguf*"))


def test_an_entry_can_be_renamed_without_new_work(tmp_path: Path) -> None:
    (kept,) = prepare(bundled_model(), ["Q4_0"], default_models_dir(), model=MODEL)
    path = tmp_path / kept.path.name
    shutil.copy2(kept.path, path)
    catalog.write_entry(path, kept.entry)
    (renamed,) = prepare(bundled_model(), ["Q4_0"], tmp_path, model="other")
    assert renamed.entry == dataclasses.replace(kept.entry, model="other")


def measure(model: Path, text: Path) -> list[dict[str, object]]:
    """What the measuring child says, line by line."""
    task = {
        "task": "perplexity",
        "path": str(model),
        "text": str(text),
        "threads": 1,
        "parent_pid": os.getpid(),
        "debug": False,
    }
    command = [sys.executable, "-m", "serving.engines.llama_cpp.prepare_child", json.dumps(task)]
    done = subprocess.run(command, stdout=subprocess.PIPE, start_new_session=True, timeout=60, check=False)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_perplexity_is_lower_for_sense_than_for_nonsense(model_path: Path, tmp_path: Path) -> None:
    words = CALIBRATION_TEXT.read_text().split()[:200]
    figures = []
    for name, order in (("sense", words), ("nonsense", sorted(words))):
        text = tmp_path / name
        text.write_text(" ".join(order))
        *shares, last = measure(model_path, text)
        assert shares[-1] == {"share": 1.0}
        figures.append(float(str(last["done"])))
    assert 5.0 < figures[0] < figures[1]


def test_a_text_too_short_to_measure_on_is_refused(model_path: Path, tmp_path: Path) -> None:
    text = tmp_path / "short"
    text.write_text("Too short.")
    (answer,) = measure(model_path, text)
    assert "too short" in str(answer["refused"])


def test_a_crash_of_the_quantizing_child_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies by a signal stands in for native code that does."""
    crashing = tmp_path / "crashing"
    crashing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crashing))
    with pytest.raises(EngineUnavailable, match=r"crashed \(signal 11"):
        prepare(bundled_model(), ["Q4_0"], tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.gguf*"))


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"TIDEGATE_CACHE": "/disk/tide", "XDG_CACHE_HOME": "/xdg"}, "/disk/tide/models"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/tidegate/models"),
        ({"HOME": "/home/someone"}, "/home/someone/.cache/tidegate/models"),
    ],
)
def test_models_lie_beside_what_the_set_up_caches(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], expected: str
) -> None:
    for name in ("TIDEGATE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert str(default_models_dir()) == expected
