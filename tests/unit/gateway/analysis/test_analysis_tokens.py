"""Token estimates against counts of a real 49k-vocabulary tokenizer, taken once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.analysis.tokens import EXACT_CHARS, estimate_chat_tokens, estimate_tokens
from tidegate.routing.domain import Message, Role


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("这是一个关于人工智能的简单问题,请用中文回答。", 33),
        ("Привет, как дела? Расскажи мне о погоде.", 30),
        ("こんにちは、今日はいい天気ですね。", 29),
        ("😀😁🎉🚀" * 4, 48),
        ("مرحبا كيف حالك اليوم", 17),
        ("Größe über Straße naïve café", 13),
    ],
)
def test_other_scripts_within_a_third(text: str, counted: int) -> None:
    assert estimate_tokens(text) == pytest.approx(counted, rel=1 / 3)


def test_empty_and_tiny_texts() -> None:
    assert estimate_tokens("") == 0
    assert estimate_tokens("a") == 1
    assert estimate_tokens("\ud800") >= 1


def test_digits_and_cjk_cost_more_than_letters() -> None:
    assert estimate_tokens("1" * 100) > 4 * estimate_tokens("a" * 100)
    assert estimate_tokens("是" * 100) > 4 * estimate_tokens("a" * 100)


@given(st.text(max_size=200), st.integers(30, 200))
def test_a_long_text_is_judged_like_its_repeated_part(part: str, times: int) -> None:
    text = part * times
    if len(text) <= EXACT_CHARS:
        return
    exact = sum(estimate_tokens(text[i : i + 4000]) for i in range(0, len(text), 4000))
    assert estimate_tokens(text) == pytest.approx(exact, rel=0.15, abs=4)


def test_the_template_is_counted_per_message() -> None:
    one = (Message(Role.USER, "hello"),)
    two = (*one, Message(Role.ASSISTANT, "hello"))
    assert estimate_chat_tokens(one) > estimate_tokens("hello")
    assert estimate_chat_tokens(two) > estimate_chat_tokens(one)
