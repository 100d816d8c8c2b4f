"""The subcommands: chosen by their name, never in the way of the daemon; and what `quantize` says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_node.__main__ import main
from edge_node.commands import COMMANDS
from edge_node.commands.common import find_model, quantizations
from edge_node.commands.quantize import fallback_lines
from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp.bundled import bundled_model, default_models_dir
from serving.engines.llama_cpp.catalog import file_digest
from serving.engines.llama_cpp.gguf_check import GgufContents, GgufHeader, GgufTensor, read_gguf
from serving.engines.llama_cpp.variants import curves
from serving.engines.llama_cpp.variants.curve import Curve, threads_to_try
from serving.engines.llama_cpp.variants.curves import Bench, save


def contents(*tensors: GgufTensor) -> GgufContents:
    header = GgufHeader(3, "llama", "Q4_K_M", 2048, True, len(tensors))
    return GgufContents(header, {}, tensors)


def test_the_daemon_keeps_its_own_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "edge.toml"
    config.write_text('[engine]\nkind = "oracle"\n')
    assert main(["--config", str(config), "--check-config"]) == 0
    assert "settings are fine" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["no-such-command"])
    assert ended.value.code == 2


def test_the_check_reads_the_headers_of_model_and_adapters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, model = tmp_path / "edge.toml", tmp_path / "m.gguf"
    model.write_bytes(b"not a model")
    config.write_text(f'[engine]\nmodel = "{model}"\n')
    assert main(["--config", str(config), "--check-config"]) == 1
    assert "m.gguf is no usable GGUF file: it does not begin with GGUF" in capsys.readouterr().err
    adapter = f'name = "blue"\npath = "{tmp_path}/none"\n'
    config.write_text(f'[engine]\nmodel = "bundled"\n[[engine.llama_cpp.adapters]]\n{adapter}')
    assert main(["--config", str(config), "--check-config"]) == 1
    assert (
        capsys.readouterr().err == f"tidegate-edge: adapter blue: the file {tmp_path}/none does not exist\n"
    )


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert "MODEL" in capsys.readouterr().out


def test_a_model_is_a_file_the_bundled_one_or_a_name(tmp_path: Path) -> None:
    (tmp_path / "m.Q4_0.gguf").write_bytes(b"")
    assert find_model("bundled", tmp_path) == bundled_model()
    for name in ("m.Q4_0", "m.Q4_0.gguf", str(tmp_path / "m.Q4_0.gguf")):
        assert find_model(name, tmp_path) == tmp_path / "m.Q4_0.gguf"
    with pytest.raises(EngineUnavailable, match=r"no model other; in .*: m\.Q4_0\.gguf"):
        find_model("other", tmp_path)


def test_quantizations_are_read_once_each() -> None:
    assert quantizations("q8_0, Q4_0,q8_0,") == ["Q8_0", "Q4_0"]


def test_quantize_tells_its_catalog_entries(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "bundled", "--to", "Q4_0", "--json"]) == 0
    captured = capsys.readouterr()
    (entry,) = json.loads(captured.out)
    assert entry["quantization"] == "Q4_0"
    assert entry["path"] == str(default_models_dir() / "SmolLM2-135M-Instruct.Q4_0.gguf")
    assert entry["fallback_tensors"] == 0
    assert "Q4_1 already" in captured.err


def test_a_missing_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "/nowhere/m.gguf"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tidegate-edge quantize: there is no model /nowhere/m.gguf")
    assert error.count("\n") == 1


def test_fallen_back_tensors_are_counted_with_their_rows() -> None:
    odd = GgufTensor("blk.0.ffn_up.weight", (576, 1536), "Q5_0")
    even = GgufTensor("blk.0.ffn_down.weight", (1536, 576), "Q4_K")
    norm = GgufTensor("blk.0.norm.weight", (576,), "F32")
    (line,) = fallback_lines(contents(odd, even, norm), "Q4_K_M")
    assert line.startswith("1 of 2 weight tensors fell back to Q5_0: their rows of 576 do not divide by 256")
    assert fallback_lines(contents(even, norm), "Q4_K_M") == []
    assert fallback_lines(contents(odd, norm), "Q5_0") == []


def test_the_header_tells_every_tensor() -> None:
    found = read_gguf(bundled_model())
    assert len(found.tensors) == found.header.tensors
    assert {t.type for t in found.tensors} >= {"F32", "Q4_1"}
    assert (found.number("block_count"), found.number("embedding_length")) == (30, 576)
    assert found.number("no.such.key", 7) == 7


def test_plan_tells_the_budget_and_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "bundled", "--slots", "2", "--context", "512"]) == 0
    text = capsys.readouterr().out
    assert "fits: 2 slots of 512 tokens need" in text
    assert main(["plan", "bundled", "--slots", "9000000", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["fits"] is False
    assert data["total"] > data["available"]["bytes"]


def test_bench_with_a_gpu_keeps_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []
    found = Bench("m", "sha256:1", "cpu, a GPU", "2026-01-02", (Curve(1, ((16, 300.0),), ((1, 9.0),)),))
    monkeypatch.setattr(curves, "measure_curves", lambda path, **how: asked.append(how) or found)
    monkeypatch.setenv("TIDEGATE_EDGE__STATE_DIR", str(tmp_path))
    assert main(["bench", "bundled", "--gpu-layers", "-1"]) == 0
    assert (asked[0]["gpu_layers"], asked[0]["threads"]) == (-1, [1])
    assert "a GPU" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert main(["bench", "bundled", "--threads", "1"]) == 0
    assert asked[1]["gpu_layers"] == 0
    assert (tmp_path / "bench").exists()


def test_bench_shows_what_was_kept_in_the_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIDEGATE_EDGE__STATE_DIR", str(tmp_path))
    assert main(["bench", "bundled", "--show"]) == 1
    assert "was not measured here" in capsys.readouterr().err
    curve = Curve(1, ((16, 300.0),), ((1, 90.0), (4, 30.0)))
    save(Bench("m", file_digest(bundled_model()), "cpu", "2026-01-02", (curve,)), tmp_path / "bench")
    assert main(["bench", "bundled", "--show"]) == 0
    text = capsys.readouterr().out
    assert "decode, 4 at once         120.0" in text
    assert "fastest here: 1 for one sequence, 1 for 4 " in text


def test_wrong_settings_are_told_with_the_exit_code_of_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "edge.toml"
    config.write_text("nonsense = 1\n")
    assert main(["bench", "bundled", "--config", str(config)]) == 2
    assert "unknown key" in capsys.readouterr().err


@pytest.mark.parametrize(("cores", "wanted"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_threads_are_tried_in_powers_of_two(cores: int, wanted: list[int]) -> None:
    assert threads_to_try(cores) == wanted
