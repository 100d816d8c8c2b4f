from __future__ import annotations

from serving.engines.llama_cpp.positions import named_positions
from tidegate.routing.domain import Message, Role
from tidegate.routing.prefix import canonical_bytes

NAMES = tuple(bytes([n]) * 16 for n in range(8))


def pieces(text: str, size: int = 5) -> list[bytes]:
    data = text.encode()
    return [data[at : at + size] for at in range(0, len(data), size)]


def test_blocks_of_a_text_end_at_whole_tokens() -> None:
    text = "x" * 1200
    positions = named_positions(NAMES[:2], pieces(text), None, 1200)
    assert positions == ((NAMES[0], 103), (NAMES[1], 205))


def test_a_space_in_front_shifts_them() -> None:
    positions = named_positions(NAMES[:1], [b" ", *pieces("x" * 600, 1)], None, 600)
    assert positions == ((NAMES[0], 513),)


def test_blocks_of_a_chat_follow_the_contents_through_the_template() -> None:
    chat = (Message(Role.SYSTEM, "s" * 700), Message(Role.USER, "u" * 500))
    rendered = f"<system>{'s' * 700}<end><user>{'u' * 500}<end><assistant>"
    data = canonical_bytes(chat)
    positions = dict(named_positions(NAMES[:2], pieces(rendered, 1), chat, len(data)))
    in_system = 512 - data.index(b"s" * 700)
    in_user = 1024 - data.index(b"u" * 500)
    assert positions[NAMES[0]] == len("<system>") + in_system
    assert positions[NAMES[1]] == rendered.index("u" * 500) + in_user


def test_a_template_that_drops_a_message_only_blurs_positions() -> None:
    chat = (Message(Role.SYSTEM, "s" * 700), Message(Role.USER, "u" * 500))
    rendered = f"<user>{'u' * 500}<end>"
    positions = named_positions(NAMES[:2], pieces(rendered, 1), chat, len(canonical_bytes(chat)))
    counts = [count for _, count in positions]
    assert counts == sorted(counts)
    assert counts[-1] <= len(rendered)


def test_nothing_in_nothing_out() -> None:
    assert named_positions((), [b"x"], None, 1) == ()
    assert named_positions(NAMES[:1], [], None, 600) == ()
