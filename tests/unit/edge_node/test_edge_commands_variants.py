"""`prune` and `report` as commands: what they take, refuse and print."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from edge_node.__main__ import main
from edge_node.commands.prune import harm_line
from serving.engines.llama_cpp.bundled import MODEL, bundled_model, default_models_dir
from serving.engines.llama_cpp.catalog import Figures, write_entry
from serving.engines.llama_cpp.gguf_check import QUANTIZATIONS
from serving.engines.llama_cpp.identity import hardware_class
from serving.engines.llama_cpp.prepare import prepare
from serving.engines.llama_cpp.variants.layers import Choice
from serving.engines.llama_cpp.variants.report import source_notes


def test_harm_is_told_from_least_to_most() -> None:
    singles = {layer: 30.0 + layer for layer in range(1, 10)} | {1: 30_000.0}
    line = harm_line(Choice((2,), singles), 30.0)
    assert line.endswith("layer: 2 +7%, 3 +10%, 4 +13%, 5 +17%, 6 +20%, ..., 9 +30%, 1 destroyed")


@pytest.mark.parametrize(
    ("layers", "why"), [("0", "first and last are vital"), ("29", "first and last"), ("4,4", "once")]
)
def test_prune_refuses_what_no_model_survives(
    layers: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prune", "bundled", "--layers", layers, "--out", str(tmp_path)]) == 1
    assert why in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["prune", "bundled", "--count", "40"], "40 of 30 layers are too many"),
        (["prune", "bundled", "--count", "16"], "16 of 30 layers are too many"),
        (["report", "bundled", "--variants", "Q8_0,pruned:16"], "16 of 30 layers are too many"),
    ],
)
def test_too_many_layers_are_refused_before_anything_is_measured(
    arguments: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert why in captured.err
    assert captured.out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["report", "bundled", "--variants", "foo"], "--variants: llama.cpp knows no quantization FOO"),
        (["report", "bundled", "--variants", "pruned:2:q4"], "knows no quantization Q4; did you mean Q4_"),
        (["quantize", "bundled", "--to", "Q8_0,Q9_0"], "--to: llama.cpp knows no quantization Q9_0"),
        (["prune", "bundled", "--to", "foo"], "--to: llama.cpp knows no quantization FOO"),
        (["bench", "bundled", "--threads", "1,x"], "--threads: 'x' is no whole number of 1 or more"),
        (["report", "bundled", "--context", "x"], "--context: 'x' is no whole number of 1 or more"),
    ],
)
def test_what_is_wrong_with_an_argument_is_named(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert why in capsys.readouterr().err


def test_the_quantizations_are_those_of_llama_cpp() -> None:
    from serving.engines.llama_cpp.native import C

    written = {name.partition("FTYPE_")[2] for name in dir(C) if name.startswith("LLAMA_FTYPE_")}
    assert {
        name.removeprefix("MOSTLY_").removeprefix("ALL_") for name in written - {"GUESSED"}
    } == QUANTIZATIONS


def test_bench_says_what_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.gguf").write_bytes(b"not a model")
    assert main(["bench", str(tmp_path / "m.gguf")]) == 1
    assert "it does not begin with GGUF" in capsys.readouterr().err


def test_a_search_without_time_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("serving.engines.llama_cpp.variants.layers.SLICE_CHARACTERS", 900)
    assert main(["prune", "bundled", "--max-s", "0", "--out", str(tmp_path)]) == 1
    assert "allow more with --max-s, or name the layers" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["prune", "bundled", "--layers", "four"],
        ["prune", "bundled", "--count", "0"],
        ["report", "bundled", "--variants", "pruned:none"],
        ["report", "bundled", "--context", "8"],
        ["quantize", "bundled", "--to", ","],
        ["bench", "bundled", "--threads", "0"],
        ["plan"],
    ],
)
def test_wrong_arguments_are_usage_errors(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_report_prints_table_json_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From figures that were kept: nothing is measured again."""
    (made,) = prepare(bundled_model(), ["Q4_0"], default_models_dir(), model=MODEL)
    hardware = hardware_class(1)
    figures = Figures(hardware, "2026-01-02", 1, 2, 128, 90.0, 2, 1, 0, 700.0, 150.0, 280.0, 0.75, 60)
    entry = dataclasses.replace(made.entry, figures=figures)
    models = tmp_path / "models"
    models.mkdir()
    write_entry(source_notes(made.path, entry.digest, models), entry)
    command = ["report", str(made.path), "--variants", "Q4_0", "--slots", "2", "--context", "128"]
    command += ["--out", str(models)]
    assert main([*command, "--json"]) == 0
    captured = capsys.readouterr()
    (row,) = json.loads(captured.out)
    assert captured.err == ""
    assert (row["variant"], row["perplexity_to_source"]) == ("source (Q4_0)", 1.0)
    assert row["figures"]["decode_slots_tokens_per_s"] == 280.0
    assert main([*command, "--plot", str(tmp_path / "plot.png")]) == 0
    shown = capsys.readouterr().out
    assert f"on {hardware}, 2026-01-02" in shown
    assert "decode 2" in shown
    assert shown.rstrip().endswith("75%")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
