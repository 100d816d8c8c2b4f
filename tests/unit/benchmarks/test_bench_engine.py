from __future__ import annotations

import asyncio
import json
import random
import stat
import sys
from pathlib import Path

import pytest

from benchmarks.bench_engine import Measurement, Options, options_of, parser
from benchmarks.common import CannotMeasure
from benchmarks.engine import tools
from benchmarks.engine.drivers import LlamaServer
from benchmarks.engine.kept import Kept
from benchmarks.engine.parts import decode_rows, hits_rows
from benchmarks.engine.replay import BLOCK_WORDS, most_hits, read_blocks, replay, text_of
from benchmarks.engine.scenarios import PROMPT_TOKENS, Disturbed, Pairs, Streams, disturbed_round, prompt
from benchmarks.engine.timeline import Timeline, decode_rate, mean_ttft_ms, whole_rate
from serving.engines.llama_cpp.settings import LlamaCppSettings

# Speaks just as much HTTP as the driver: /health, /tokenize, and one event per token.
STUB = """#!{python}
import http.server, json, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *a): pass
    def answer(self, body):
        self.send_response(200); self.end_headers(); self.wfile.write(body)
    def do_GET(self): self.answer(b"{{}}")
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            return self.answer(json.dumps({{"tokens": asked["content"].split()}}).encode())
        events = [{{"content": "x", "stop": False}}] * asked["n_predict"] + [{{"content": "", "stop": True}}]
        if asked["prompt"] == "none": events = events[-1:]
        lines = (json.dumps(e, separators=(",", ":")).encode() for e in events)
        self.answer(b"".join(b"data: " + e + b"\\n\\n" for e in lines))
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def line(asked_s: float, *tokens_s: float) -> Timeline:
    return Timeline(asked_s, list(tokens_s))


def test_rates_count_only_what_lies_inside() -> None:
    lines = [line(0.0, 1.0, 2.0, 3.0, 4.0), line(0.0, 2.0, 3.0, 4.0, 5.0)]
    # From 2 s, when both answer, to 4 s, when the first has ended: two tokens each.
    assert decode_rate(lines) == 2.0
    assert whole_rate(lines) == 8 / 5.0
    assert mean_ttft_ms(lines) == 1500.0
    assert decode_rate([line(0.0, 1.0), line(0.0, 2.0)]) == 0.0


def test_gaps_are_those_that_end_in_the_window() -> None:
    assert line(0.0, 1.0, 1.5, 3.0, 3.25).gaps_ms(1.4, 3.0) == [500.0, 1500.0]


def test_the_ratio_is_the_median_of_pairs_not_the_ratio_of_medians() -> None:
    pairs = Pairs([1.0, 10.0, 3.0], [1.0, 5.0, 30.0])
    assert pairs.ratio() == 1.0
    low, high = pairs.interval(random.Random(1))
    assert low <= 1.0 <= high


def test_bars_bite() -> None:
    def figures(ratio: float) -> dict[int, Streams]:
        return {1: Streams(Pairs([ratio] * 3, [1.0] * 3), Pairs([1.0], [1.0]), Pairs([1.0], [1.0]))}

    for ratio, held in ((0.9, (False, False)), (0.97, (True, False)), (1.01, (True, True))):
        judged = [r.holds for r in decode_rows("m", figures(ratio), random.Random(1)) if r.bar]
        assert tuple(judged) == held


def test_a_stall_shows_in_the_ratio() -> None:
    assert Disturbed(calm_ms=[10.0] * 100, beside_ms=[10.0] * 90 + [100.0] * 10).ratio() == 10.0


def test_the_source_is_the_locked_one() -> None:
    requirement = tools._locked_requirement()
    assert requirement.startswith("llama-cpp-python==")
    assert "--hash=sha256:" in requirement


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would be run to build the tools; their source is there already."""
    found: list[list[str]] = []
    monkeypatch.setenv("TIDEGATE_CACHE", str(tmp_path))
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    monkeypatch.setattr(tools, "compiler_flags", dict)
    monkeypatch.setattr(tools, "_run", lambda command, log: found.append(command))
    monkeypatch.setattr(tools, "_source", lambda home, requirement: home / "source")
    monkeypatch.setattr(tools.shutil, "which", lambda program: f"/usr/bin/{program}")
    return found


def test_built_tools_are_taken_as_they_are(tmp_path: Path, commands: list[list[str]]) -> None:
    version = tools._locked_requirement().split("==")[1].split()[0]
    programs = tmp_path / "llama-tools" / f"llama-cpp-python-{version}" / "build" / "bin"
    programs.mkdir(parents=True)
    for name in tools.TARGETS:
        (programs / name).touch()
    assert tools.llama_tools() == programs
    assert commands == []


def test_tools_with_other_compiler_flags_lie_apart(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tools.llama_tools()
    monkeypatch.setattr(tools, "compiler_flags", lambda: {"CXXFLAGS": "-U__AMX_INT8__"})
    assert tools.llama_tools() != plain
    assert len(commands) == 4  # configured and built, twice


def test_tools_for_other_hardware_lie_apart(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = []
    for options in ("", "-DGGML_CUDA=ON", "-DGGML_VULKAN=ON"):
        monkeypatch.setenv("CMAKE_ARGS", options)
        homes.append(tools.llama_tools())
        assert commands[-2][-1] == (options or tools._OPTIONS[-1])
    assert len(set(homes)) == 3


def test_rounds_with_a_gpu_are_kept_apart(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    asked = ["--models", str(model), "--parts", "share", "--programs", "/p", "--keep", str(tmp_path / "r")]
    with pytest.raises(CannotMeasure, match=r"there is no file .*m\.gguf"):
        options_of(parser().parse_args(asked))
    model.touch()
    without, with_gpu = (
        options_of(parser().parse_args([*asked, "--gpu-layers", layers])) for layers in ("0", "-1")
    )
    assert (without.gpu_layers, with_gpu.gpu_layers) == (0, -1)
    assert without.programs == Path("/p")
    assert without.keep != with_gpu.keep


@pytest.mark.parametrize(("layers", "told"), [(0, None), (20, "20"), (-1, "999")])
async def test_both_engines_get_the_same_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: int, told: str | None
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(LlamaServer, "_spawn", lambda self, command: seen.append(command) or Gone())
    server = LlamaServer(
        Path("p"), settings(tmp_path).model_copy(update={"n_gpu_layers": layers}), tmp_path / "l"
    )
    with pytest.raises(CannotMeasure):
        await server.start()
    (command,) = seen
    assert (command[command.index("-ngl") + 1] if "-ngl" in command else None) == told


class Gone:
    """A process that has ended."""

    def poll(self) -> int:
        return 1


def settings(tmp_path: Path) -> LlamaCppSettings:
    return LlamaCppSettings(model_path=tmp_path / "m.gguf", model="m")


async def test_the_server_driver_times_each_token(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text(STUB.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    server = LlamaServer(program, settings(tmp_path), tmp_path / "log")
    try:
        await server.start()
        assert await server.tokens_of("a b c") == 3
        answers = await asyncio.gather(*(server.answer("p", n) for n in (1, 5)))
        assert [len(a.tokens_s) for a in answers] == [1, 5]
        assert all(a.ttft_ms > 0 for a in answers)
        with pytest.raises(CannotMeasure):
            await server.answer("none", 3)
        figures = Disturbed()
        await disturbed_round(server, random.Random(1), 2, PROMPT_TOKENS, 20, figures)
        assert len(figures.long_ttft_ms) == 1
    finally:
        await server.stop()


async def test_a_server_that_ends_at_once_is_one_clear_line(tmp_path: Path) -> None:
    server = LlamaServer(Path("/bin/false"), settings(tmp_path), tmp_path / "log")
    with pytest.raises(CannotMeasure, match="did not start"):
        await server.start()
    await server.stop()


def test_prompts_have_their_tokens_and_differ() -> None:
    rng = random.Random(1)
    first, second = prompt(rng, 128), prompt(rng, 128)
    assert len(first.split()) == 128
    assert first != second


def test_rounds_are_kept_and_only_missing_ones_are_played(tmp_path: Path) -> None:
    path = tmp_path / "kept" / "rounds.jsonl"
    Kept(path).add("streams m 4", {"decode": [2.0, 1.0]})
    kept = Kept(path)
    kept.add("streams m 4", {"decode": [3.0, 1.0]})
    again = Kept(path)
    assert again.rounds("streams m 4") == [{"decode": [2.0, 1.0]}, {"decode": [3.0, 1.0]}]
    assert again.rounds("streams m 8") == []
    asked = Options(3, 1, ("m",), ("streams",), 1, tmp_path, path, 0.0)
    measurement = Measurement(asked)
    (wanted,) = measurement.wanted()
    missing = measurement.missing(*wanted)
    assert [number for number, unit in missing if unit == "4"] == [2]
    assert [number for number, unit in missing if unit == "16"] == [0, 1, 2]
    with pytest.raises(CannotMeasure, match="streams m: 10"):
        measurement.rows()


def test_equal_blocks_of_a_trace_become_equal_words_and_whole_conversations_are_taken(tmp_path: Path) -> None:
    lines = [[0, 100 + n] + [1000 + n] * turn for turn in range(2) for n in range(40)]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(json.dumps({"hash_ids": ids}) for ids in [*lines, [0], list(range(500))]))
    taken = read_blocks(path)
    assert [ids[1] for ids in taken] == [100, 120, 100, 120]
    # Only the first block of all, then each conversation's first turn, comes again.
    assert most_hits(taken) == (0 + 1 + 2 + 2) / (2 + 2 + 3 + 3)
    first, longer = text_of(taken[0]), text_of(taken[2])
    assert longer.startswith(first)
    assert len(longer.split()) == 3 * BLOCK_WORDS


async def test_a_replay_counts_what_was_found(tmp_path: Path) -> None:
    class Finding:
        name = "finding"

        async def answer(self, prompt: str, tokens: int, *, cached: str = "") -> Timeline:
            assert cached
            count = len(prompt.split())
            return Timeline(0.0, [1.0] * tokens, prompt_tokens=count, cached_tokens=count // 2)

        async def stop(self) -> None:
            pass

    hits = await replay(Finding(), [(1, 2), (1, 3), (4,)])
    assert (hits.prompt, hits.share) == (5 * BLOCK_WORDS, 0.5)
    judged = hits_rows(
        "m",
        {
            n: [{"cached": c, "prompt": 10, "most": 1.0, "asked": 3}]
            for n, c in (("tidegate", 6), ("llama-server", 5))
        },
        random.Random(1),
    )
    assert [r.holds for r in judged if r.bar] == [False]
