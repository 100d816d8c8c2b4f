"""The program: its words, its exit codes and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from simulator_helpers import EXAMPLE

from simulator.__main__ import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--limit", "0"), "--limit: must be a whole number of 1 or more"),
        (("--target-share", "3"), "--target-share: must be a number above 0 and below 1"),
        (("--rate", "nan"), "--rate: must be a number above 0"),
        (("--seed", "-3"), "--seed: must be a whole number of 0 or more"),
        (("--limit", "9" * 5000), "--limit: must have at most 15 digits"),
        (("--compare", "all", "--policy", "tidegate"), "--policy: not allowed with argument --compare"),
    ],
)
def test_wrong_options_are_named(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--trace", "synthetic:2:600", "--fleet", str(EXAMPLE), *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "all 18 requests are warm-up, 200 for each of 10 nodes"),
        (("--plot", "/no/such/folder/x.png"), "--plot: there is no folder /no/such/folder"),
        (("--warm-up", "0", "--plot", "{}/x.nothing"), "x.nothing must end in one of"),
        (("--warm-up", "0", "--plot", "{}"), "cannot be written"),
        (("--warm-up", "0", "--rate", "1e-300"), "the requests come within"),
        (("--compare", "tidegate,luck"), "unknown policy luck"),
        (("--compare", ""), "--compare names no policy"),
        (("--compare", " , "), "--compare names no policy"),
    ],
)
def test_what_cannot_be_played_is_one_line(
    words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [word.format(tmp_path) for word in words]
    assert main(["--trace", "synthetic:2:5", "--fleet", str(EXAMPLE), *filled]) == 2
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert said in lines[-1]
    assert not told.out
    assert "requests/s" not in told.err  # nothing was played for nothing
    assert lines[-1].startswith("tidegate simulate: ")


def test_the_program_prints_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(
        'version = 1\n[[node]]\nname = "e"\ntier = "edge"\nvariant = "v"\nslots = 4\ncontext_tokens = 8192\n'
        "prefill_tps = 600.0\nprefill_chunk = 512\ndecode_tps = [[1, 20.0]]\ncache_tokens = 0\n"
    )
    words = ["--trace", "synthetic:1:20", "--fleet", str(fleet), "--warm-up", "0", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["policy"] == "tidegate"
    assert main(["--trace", str(tmp_path / "none.csv"), "--fleet", str(fleet)]) == 2


SHORT = ["--trace", "synthetic:2:5", "--fleet", str(EXAMPLE), "--warm-up", "0"]


def test_each_policy_is_compared_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, "--json", "--compare", "tidegate, exact,tidegate"]) == 0
    told = capsys.readouterr()
    assert list(json.loads(told.out)) == ["tidegate", "exact"]
    assert told.err.count("requests/s") == 2


def test_a_comparison_of_one_looks_like_a_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, "--json", "--compare", "exact"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["exact"]


def test_the_table_is_there_whatever_happens_to_the_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    matplotlib = pytest.importorskip("matplotlib.figure")
    path = tmp_path / "x.png"
    assert main([*SHORT, "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()

    def full(figure: object, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(matplotlib.Figure, "savefig", full)
    assert main([*SHORT, "--plot", str(path)]) == 2
    told = capsys.readouterr()
    assert told.out.splitlines()[1].startswith("tidegate ")
    assert told.err.splitlines()[-1].startswith("tidegate simulate: --plot: [Errno 28]")
