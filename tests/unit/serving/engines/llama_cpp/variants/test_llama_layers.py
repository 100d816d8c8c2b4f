"""Which layers may go: the greedy choice, its time limit, its notes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp.bundled import bundled_model
from serving.engines.llama_cpp.variants import layers as layers_module
from serving.engines.llama_cpp.variants.layers import LayerSearch, check_layers, choose, spread

HARM = {1: 480.0, 2: 41.0, 3: 39.0, 4: 37.0, 5: 38.0, 6: 60.0}


def test_the_least_harmful_go_first() -> None:
    choice = choose(1, list(HARM), lambda layers: HARM[layers[0]])
    assert choice is not None
    assert choice.layers == (4,)
    assert choice.singles == HARM


def test_layers_are_judged_beside_those_chosen_already() -> None:
    """4 and 5 are each harmless and ruinous together; by their single figures they would both go."""
    asked: list[tuple[int, ...]] = []

    def score(layers: tuple[int, ...]) -> float:
        asked.append(layers)
        return 500.0 if {4, 5} <= set(layers) else sum(HARM[layer] for layer in layers)

    choice = choose(2, list(HARM), score)
    assert choice is not None
    assert choice.layers == (3, 4)
    assert len(asked) == len(HARM) + 4


def test_out_of_time_the_single_figures_decide() -> None:
    choice = choose(2, list(HARM), lambda layers: HARM[layers[0]] if len(layers) == 1 else None)
    assert choice is not None
    assert choice.layers == (4, 5)
    assert choose(2, list(HARM), lambda layers: None) is None
    assert choose(3, list(HARM), lambda layers: 1.0 if layers in ((2,), (3,)) else None) is None


def test_every_region_is_seen_early() -> None:
    order = spread(range(1, 29))
    assert sorted(order) == list(range(1, 29))
    assert order[:7] == [1, 5, 9, 13, 17, 21, 25]


@pytest.mark.parametrize(
    ("layers", "why"),
    [
        ([0], "first and last are vital"),
        ([29], "first and last are vital"),
        ([30], "the layers 0 to 29"),
        ([-1], "the layers 0 to 29"),
        ([4, 4], "once"),
        ([], "at least one"),
        (list(range(1, 17)), "at most half"),
    ],
)
def test_what_no_model_survives_is_refused(layers: list[int], why: str) -> None:
    with pytest.raises(EngineUnavailable, match=why):
        check_layers(layers, 30)
    assert check_layers([26, 4], 30) == (4, 26)


def test_figures_are_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers_module, "SLICE_CHARACTERS", 900)
    lines: list[str] = []
    first = LayerSearch(bundled_model(), tmp_path, progress=lines.append)
    whole = first.whole()
    assert 10.0 < whole < 200.0
    (notes,) = tmp_path.iterdir()
    assert notes.name == "SmolLM2-135M-Instruct.layers.json"
    again = LayerSearch(bundled_model(), tmp_path, progress=lines.append)
    assert again.whole() == whole
    assert lines == [f"whole: perplexity {whole:.2f}"]
    stale = json.loads(notes.read_text())
    stale["basis"]["source"] = "sha256:other"
    notes.write_text(json.dumps(stale))
    times = iter((0.0, *[601.0] * 99))
    late = LayerSearch(bundled_model(), tmp_path, clock=lambda: next(times))
    with pytest.raises(EngineUnavailable, match="fewer than 1 layers"):
        late.choose(1)


def test_a_search_cut_short_says_so(tmp_path: Path) -> None:
    basis = LayerSearch(bundled_model(), tmp_path)._basis
    known = {str(layer): 40.0 + layer for layer in (5, 9, 13)}
    notes = tmp_path / "SmolLM2-135M-Instruct.layers.json"
    notes.write_text(json.dumps({"basis": basis, "perplexity": known}))
    lines: list[str] = []
    clock = iter([0.0, *[9.0] * 99])
    search = LayerSearch(
        bundled_model(), tmp_path, max_s=5.0, progress=lines.append, clock=lambda: next(clock)
    )
    assert search.choose(2).layers == (5, 9)
    assert lines == ["time ran out: chosen among the 3 of 28 layers that were measured"]
    clock = iter([0.0, *[9.0] * 99])
    with pytest.raises(EngineUnavailable, match=r"fewer than 4 layers could be measured within 5 s"):
        search.choose(4)
