"""What the engine chooses where nothing is set, by the memory that there is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp import fit
from serving.engines.llama_cpp.fit import check_model, derive
from serving.engines.llama_cpp.settings import LlamaCppSettings
from serving.engines.llama_cpp.variants import plan as plan_module
from serving.engines.llama_cpp.variants.choose import Wish, choose
from serving.engines.llama_cpp.variants.memory import AvailableMemory
from serving.engines.llama_cpp.variants.plan import Load, Shape, budget_of

GB = 1_000_000_000
# A model of 1.5 billion weights in Q4_0: 28 KB of cache a token.
SHAPE = Shape(
    weights_bytes=900_000_000,
    kv_numbers_per_token=28 * 2 * 256,
    embedding=1536,
    feed_forward=8960,
    heads=12,
    vocabulary=150_000,
    context_train=32768,
)


def available(size: float) -> AvailableMemory:
    return AvailableMemory(int(size), "the machine")


@pytest.mark.parametrize(
    ("memory", "wanted"),
    [
        (32 * GB, Load(4, 4096, "f16", 256)),
        (8 * GB, Load(4, 2048, "f16", 256)),
        (1.6 * GB, Load(2, 2048, "f16", 256)),
        (1.42 * GB, Load(1, 2048, "f16", 256)),
        (1.36 * GB, Load(1, 2048, "q8_0", 256, flash=True)),
        (0.1 * GB, Load(1, 512, "q8_0", 128, flash=True)),
    ],
)
def test_less_memory_gives_fewer_slots_then_a_smaller_cache_then_less_context(
    memory: float, wanted: Load
) -> None:
    found = choose(SHAPE, Wish(), available(memory))
    assert found == wanted
    if wanted.n_batch == 256:
        assert budget_of(SHAPE, found, with_daemon=False).total <= 0.8 * memory


def test_what_the_operator_set_stays() -> None:
    for memory in (32 * GB, 1.5 * GB, 0.1 * GB):
        found = choose(SHAPE, Wish(slots=8, kv_type="f16"), available(memory))
        assert (found.slots, found.kv_type) == (8, "f16")
    assert choose(SHAPE, Wish(3, 1000, "q8_0", 64), available(1.0)) == Load(3, 1000, "q8_0", 64, flash=True)
    assert Wish().is_open
    assert not Wish(3, 1000, "q8_0", 64).is_open


def test_unknown_memory_gives_the_usual_and_training_bounds_the_context() -> None:
    assert choose(SHAPE, Wish(), None) == Load(4, 2048, "f16", 256)
    assert choose(replace(SHAPE, context_train=1024), Wish(), None).context_tokens == 1024
    assert choose(replace(SHAPE, context_train=1024), Wish(), available(32 * GB)).context_tokens == 1024


def test_rows_that_blocks_do_not_fill_stay_in_f16() -> None:
    odd = replace(SHAPE, takes_q8_cache=False)
    assert choose(odd, Wish(), available(1.36 * GB)).kv_type == "f16"


def test_the_engine_takes_what_is_chosen_and_refuses_what_never_fits(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def memory(size: float) -> None:
        for module in (fit, plan_module):
            monkeypatch.setattr(module, "available_memory", lambda: available(size))

    settings = LlamaCppSettings(
        model_path=model_path, model="m", slots=0, context_tokens=0, kv_type="auto", n_batch=0
    )
    memory(32 * GB)
    derived = derive(settings)
    assert (derived.slots, derived.context_tokens, derived.kv_type, derived.n_batch) == (4, 4096, "f16", 256)
    assert (settings.leaves_open, derived.leaves_open) == (True, False)
    memory(0.35 * GB)
    derived = derive(settings)
    assert (derived.slots, derived.kv_type) == (2, "f16")
    check_model(derived)
    memory(0.1 * GB)
    with pytest.raises(EngineUnavailable, match=r"1 slots of 512 tokens need \d+ MB of 100 MB"):
        check_model(derive(settings))
    gpu = derive(settings.model_copy(update={"n_gpu_layers": -1}))
    assert (gpu.slots, gpu.context_tokens, gpu.kv_type) == (4, 2048, "f16")


@pytest.mark.parametrize("bad", [{"context_tokens": 100}, {"n_batch": 8}])
def test_a_value_that_is_too_small_is_no_wish(model_path: Path, bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be 0 or at least"):
        LlamaCppSettings.model_validate({"model_path": model_path, "model": "m"} | bad)
