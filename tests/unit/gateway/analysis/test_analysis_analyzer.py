"""The whole analysis of a request, and what a prefix name keeps secret."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.analysis import Analyzer
from gateway.analysis.analyzer import MAX_BLOCKS
from tidegate.routing.domain import GenerateRequest, Message, Role
from tidegate.routing.prefix import BLOCK_BYTES, canonical_bytes, prefix_names

KEY = b"k" * 32
ANALYZER = Analyzer(KEY)
SHORT = {blocks: Analyzer(KEY, max_blocks=blocks) for blocks in (1, 2, 3)}


def chat(*contents: str, tenant: str = "default") -> GenerateRequest:
    roles = (Role.USER, Role.ASSISTANT)
    messages = tuple(Message(roles[i % 2], text) for i, text in enumerate(contents))
    return GenerateRequest("r", messages=messages, tenant=tenant)


def text(prompt: str, tenant: str = "default") -> GenerateRequest:
    return GenerateRequest("r", prompt=prompt, tenant=tenant)


@pytest.mark.parametrize(
    "request_",
    [
        chat(""),
        chat("hello"),
        chat("a" * 5_000_000),
        chat("\ud800 lone"),
        text(""),
        text("是" * 100_000),
        text("\udfff"),
        GenerateRequest("r"),
        GenerateRequest("r", messages=(Message(Role.SYSTEM, "be brief"),)),
    ],
)
def test_any_request_can_be_analysed(request_: GenerateRequest) -> None:
    analysis = ANALYZER.analyze(request_)
    assert analysis.prompt_tokens >= 1
    assert 0.0 <= analysis.difficulty <= 1.0
    assert len(analysis.prefix_hashes) <= MAX_BLOCKS


def test_names_are_those_of_the_full_canonical_bytes() -> None:
    request = chat("system-like start " * 200, "ok", "是" * 3000, '"quoted\\" \n' * 2000)
    key = ANALYZER._tenant_key("default")
    expected = prefix_names(canonical_bytes(request.messages), key, max_blocks=MAX_BLOCKS)
    assert ANALYZER.analyze(request).prefix_hashes == expected
    assert len(expected) > 50


@given(st.lists(st.text(max_size=400), min_size=1, max_size=6), st.sampled_from((1, 2, 3)))
def test_cutting_long_input_short_never_changes_a_name(contents: list[str], blocks: int) -> None:
    analyzer = SHORT[blocks]
    request = chat(*[c * 3 for c in contents])
    try:
        data = canonical_bytes(request.messages)
    except UnicodeEncodeError:
        return
    expected = prefix_names(data, analyzer._tenant_key("default"), max_blocks=blocks)
    assert analyzer.prefix_hashes(request) == expected


def test_a_longer_conversation_keeps_the_names_of_its_beginning() -> None:
    first = ANALYZER.analyze(chat("x" * 2000)).prefix_hashes
    second = ANALYZER.analyze(chat("x" * 2000, "answer", "more")).prefix_hashes
    assert second[: len(first)] == first
    assert len(first) == len(canonical_bytes(chat("x" * 2000).messages)) // BLOCK_BYTES


def test_tenants_fleets_adapters_and_generations_name_apart() -> None:
    request = chat("the same prompt " * 100)
    names = {
        ANALYZER.prefix_hashes(request),
        ANALYZER.prefix_hashes(chat("the same prompt " * 100, tenant="other")),
        Analyzer(b"z" * 32).prefix_hashes(request),
        ANALYZER.prefix_hashes(replace(request, adapter="red")),
        Analyzer(KEY, rotate_s=100.0, wall_clock=lambda: 1000.0).prefix_hashes(request),
    }
    assert len(names) == 5
    assert Analyzer(KEY).prefix_hashes(request) in names  # replicas of one fleet agree


def test_each_tenant_gets_other_names_once_per_turn_and_not_all_at_the_same_moment() -> None:
    now_s = 5000.0
    tenants = [f"tenant-{n}" for n in range(12)]

    def names(analyzer: Analyzer) -> list[tuple[bytes, ...]]:
        return [analyzer.prefix_hashes(chat("the same prompt " * 100, tenant=t)) for t in tenants]

    def fresh() -> Analyzer:
        return Analyzer(KEY, rotate_s=100.0, wall_clock=lambda: now_s)

    old = fresh()
    changed, before = [], names(old)
    for _ in range(20):
        now_s += 10.0
        after = names(old)
        assert after == names(fresh())  # a replica that has seen nothing before agrees
        changed.append(sum(a != b for a, b in zip(after, before, strict=True)))
        before = after
    assert sum(changed) == 2 * len(tenants)
    assert max(changed) < len(tenants) / 2
    now_s = 5000.0  # a clock set back finds the old names again
    assert names(old) == names(fresh())


def test_difficulty_is_of_what_is_asked_now() -> None:
    hard = "Prove that the algorithm terminates and derive its time complexity step by step."
    late = ANALYZER.analyze(chat("Hi", "Hello!", hard)).difficulty
    early = ANALYZER.analyze(chat(hard, "It does.", "thanks")).difficulty
    assert late > early


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="16"):
        Analyzer(b"short")
