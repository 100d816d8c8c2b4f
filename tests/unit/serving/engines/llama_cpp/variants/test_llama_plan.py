"""Memory budgets: what is available under every kind of limit, and what a model needs of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp.bundled import MODEL, bundled_model
from serving.engines.llama_cpp.engine import LlamaCppEngine
from serving.engines.llama_cpp.gguf_check import GgufArray, GgufContents, GgufHeader, read_gguf
from serving.engines.llama_cpp.settings import LlamaCppSettings
from serving.engines.llama_cpp.variants import plan as plan_module
from serving.engines.llama_cpp.variants.memory import AvailableMemory, available_memory
from serving.engines.llama_cpp.variants.plan import Load, Shape, budget_of, lines, model_bytes, plan

GIB = 1 << 30


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MACHINE = {"proc/meminfo": "MemTotal: 8388608 kB\nMemFree: 100 kB\nMemAvailable:    4194304 kB\n"}
UNIFIED = {**MACHINE, "proc/self/cgroup": "0::/system.slice/edge.service\n"}
GROUP = "sys/fs/cgroup/system.slice/edge.service"


def test_reclaimable_memory_counts_as_available(tmp_path: Path) -> None:
    found = available_memory(system(tmp_path, MACHINE))
    assert found is not None
    assert found.bytes == 4 * GIB
    assert "machine" in found.limited_by


def test_the_group_limit_counts_with_its_page_cache_as_free(tmp_path: Path) -> None:
    group = {
        f"{GROUP}/memory.max": f"{GIB}\n",
        f"{GROUP}/memory.current": f"{GIB - 1000}\n",
        f"{GROUP}/memory.stat": "anon 5\nfile 900\ninactive_file 500\nactive_file 300\n",
    }
    found = available_memory(system(tmp_path, UNIFIED | group))
    assert found is not None
    assert found.bytes == 1800
    assert "control group" in found.limited_by


def test_the_tightest_group_above_counts(tmp_path: Path) -> None:
    groups = {
        f"{GROUP}/memory.max": "max\n",
        f"{GROUP}/memory.current": "7\n",
        "sys/fs/cgroup/system.slice/memory.max": f"{2 * GIB}",
        "sys/fs/cgroup/system.slice/memory.current": f"{GIB}",
    }
    found = available_memory(system(tmp_path, UNIFIED | groups))
    assert found is not None
    assert found.bytes == GIB


def test_version_one_groups_and_a_container_that_sees_its_group_as_root(tmp_path: Path) -> None:
    groups = {
        "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB // 2}",
        "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 1000\n",
    }
    found = available_memory(system(tmp_path, MACHINE | groups))
    assert found is not None
    assert found.bytes == GIB // 2 + 1000
    unlimited = groups | {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}
    found = available_memory(system(tmp_path, MACHINE | unlimited))
    assert found is not None
    assert found.bytes == 4 * GIB


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None


def shape(heads_kv: object = 3) -> Shape:
    values = {
        "llama.block_count": 30,
        "llama.embedding_length": 576,
        "llama.feed_forward_length": 1536,
        "llama.attention.head_count": 9,
        "llama.attention.head_count_kv": heads_kv,
        "tokenizer.ggml.tokens": GgufArray(49_152, None),
    }
    contents = GgufContents(GgufHeader(3, "llama", "Q4_0", 8192, True, 0), values, ())
    return Shape.of(contents, 92_000_000)


def test_the_cache_follows_from_the_header() -> None:
    """23,040 bytes a token in f16 is what llama.cpp itself reports for this model."""
    assert budget_of(shape(), Load(1, 1024)).cache_per_slot == 1024 * 23_040
    assert budget_of(shape(), Load(1, 1000)).cache_per_slot == 1024 * 23_040
    assert budget_of(shape(), Load(1, 1024, "q8_0")).cache_per_slot == 1024 * 23_040 * 17 // 32
    one_a_layer = GgufArray(30, (3,) * 29 + (0,))
    assert budget_of(shape(one_a_layer), Load(1, 1024)).cache_per_slot == 1024 * 23_040 * 29 // 30


def test_a_recurrent_model_has_no_cache_that_grows() -> None:
    values = {"mamba.block_count": 24, "mamba.embedding_length": 768, "mamba.attention.head_count": 0}
    contents = GgufContents(GgufHeader(3, "mamba", "F16", 0, False, 0), values, ())
    assert Shape.of(contents, 1).kv_numbers_per_token == 0


def test_all_parts_of_a_split_model_count(tmp_path: Path) -> None:
    for name in (
        "m[1]-00001-of-00002.gguf",
        "m[1]-00002-of-00002.gguf",
        "m[1]-00001-of-00003.gguf",
        "x.gguf",
    ):
        (tmp_path / name).write_bytes(bytes(10))
    assert model_bytes(tmp_path / "m[1]-00001-of-00002.gguf") == 20
    assert model_bytes(tmp_path / "x.gguf") == 10


def test_the_estimate_is_near_the_measured_process() -> None:
    """A child with the bundled model, 4 slots of 512, had an RSS of 222 MB."""
    found = read_gguf(bundled_model())
    budget = budget_of(Shape.of(found, bundled_model().stat().st_size), Load(4, 512), with_daemon=False)
    assert 200e6 < budget.total < 250e6


def test_what_would_fit_is_found() -> None:
    load = Load(4, 2048)
    total = budget_of(shape(), load).total
    exactly = plan(shape(), load, AvailableMemory(total, "test"))
    assert exactly.fits
    assert (exactly.most_context, exactly.most_slots) == (2048, 4)
    short = plan(shape(), load, AvailableMemory(total - 1, "test"))
    assert not short.fits
    assert (short.most_context, short.most_slots) == (2048 - 256, 3)
    text = lines(short)[-1]
    assert text.startswith("does not fit: 4 slots of 2048 tokens need")
    assert text.endswith("what would: 4 slots of 1792 tokens, or 3 slots of 2048 tokens")
    none = plan(shape(), load, AvailableMemory(1_000_000, "test"))
    assert (none.most_context, none.most_slots) == (0, 0)
    assert "smaller variant" in lines(none)[-1]


def test_the_table_adds_up_to_its_total() -> None:
    load = Load(2, 512)
    budget = budget_of(shape(), load)
    parts = (budget.weights, budget.compute, budget.vocabulary, budget.child, budget.daemon)
    assert budget.total == sum(parts) + 2 * budget.cache_per_slot
    table = lines(plan(shape(), load, AvailableMemory(GIB, "test")))
    assert [line.split()[0] for line in table] == [
        "weights", "cache", "compute", "vocabulary", "engine", "daemon", "total", "available", "fits:"
    ]  # fmt: skip


def test_no_more_context_counts_than_the_model_was_trained_for() -> None:
    found = plan(shape(), Load(1, 1_000_000), AvailableMemory(GIB, "test"))
    assert found.load.context_tokens == 8192
    assert found.fits


@pytest.fixture
def short_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "available_memory", lambda: AvailableMemory(100_000_000, "a small box"))


@pytest.mark.usefixtures("short_of_memory")
async def test_the_engine_refuses_what_does_not_fit_with_the_numbers() -> None:
    settings = LlamaCppSettings(model_path=bundled_model(), model=MODEL, slots=1, context_tokens=256)
    with pytest.raises(EngineUnavailable, match=r"does not fit: 1 slots .* 100 MB.*a small box.*fit_check"):
        await LlamaCppEngine(settings).start()


@pytest.mark.usefixtures("short_of_memory")
async def test_the_check_can_be_switched_off() -> None:
    settings = LlamaCppSettings(
        model_path=bundled_model(), model=MODEL, slots=1, context_tokens=256, fit_check=False
    )
    engine = LlamaCppEngine(settings)
    await engine.start()
    await engine.stop(0.0)
