from __future__ import annotations

import random

import pytest

from serving.engines.llama_cpp.text import TextAssembler


def feed(assembler: TextAssembler, pieces: list[bytes]) -> tuple[list[str], bool]:
    texts = []
    for piece in pieces:
        text, stopped = assembler.push(piece)
        texts.append(text)
        if stopped:
            return texts, True
    return texts, False


def split(data: bytes, seed: int) -> list[bytes]:
    rng = random.Random(seed)
    pieces = []
    while data:
        size = rng.randint(1, 3)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


@pytest.mark.parametrize("seed", range(20))
def test_characters_are_never_split(seed: int) -> None:
    whole = "naïve 你好，世界 🌊👩‍🚀 żółć"
    texts, stopped = feed(TextAssembler(), split(whole.encode(), seed))
    assert not stopped
    assert "".join(texts) == whole
    assert all("�" not in text for text in texts)


@pytest.mark.parametrize("seed", range(50))
def test_no_part_of_a_stop_string_leaks_however_tokens_are_cut(seed: int) -> None:
    before, stop, after = "The sea. END, EN, then ", "END OF FILE", " and more"
    assembler = TextAssembler((stop, "\n\nUser:"))
    texts, stopped = feed(assembler, split((before + stop + after).encode(), seed))
    assert stopped
    assert "".join(texts) == before


def test_text_that_only_began_like_a_stop_string_is_released_by_what_follows() -> None:
    assembler = TextAssembler(("abcd",))
    assert assembler.push(b"xab") == ("x", False)
    assert assembler.push(b"c") == ("", False)
    assert assembler.push(b"e") == ("abce", False)


def test_flush_gives_held_text_once() -> None:
    assembler = TextAssembler(("stop",))
    assert assembler.push(b"one st") == ("one ", False)
    assert assembler.flush() == "st"
    assert assembler.flush() == ""


def test_the_earliest_of_several_stop_strings_wins() -> None:
    assert TextAssembler(("world", "lo")).push(b"hello world") == ("hel", True)


def test_overlapping_beginnings_are_held_back() -> None:
    assembler = TextAssembler(("aab",))
    assert assembler.push(b"aaa") == ("a", False)
    assert assembler.push(b"b") == ("", True)


def test_an_unfinished_character_at_the_end_is_dropped_and_bad_bytes_are_marked() -> None:
    assembler = TextAssembler()
    assert assembler.push("né".encode()[:-1]) == ("n", False)
    assert assembler.flush() == ""
    assert TextAssembler().push(b"a\xff b") == ("a� b", False)
