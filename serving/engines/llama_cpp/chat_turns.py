"""Messages as the turns that chat templates know, with earlier calls of functions. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from serving.engines.llama_cpp.call_syntax import TemplateCalls
from serving.tool_text import Turn
from tidegate.routing.domain import Message


def plain_turn(message: Message) -> dict[str, Any]:
    return {"role": message.role.value, "content": message.content} | (
        {"name": message.name} if message.name else {}
    )


def turns_with_calls(turns: Sequence[Turn], template: TemplateCalls) -> list[dict[str, Any]]:
    """A template that leaves calls out gets them as the text that the model wrote."""
    made = []
    for turn in turns:
        fields = plain_turn(turn.message)
        if turn.answers is not None:
            fields["tool_call_id"] = _id_of(turn.answers)
        if turn.calls and template.rendered:
            fields |= {"content": turn.text, "tool_calls": [_call(*call) for call in turn.calls]}
        elif turn.calls:
            written = template.syntax.write((call.name, call.arguments) for call in turn.calls)
            fields["content"] = f"{turn.text}\n{written}" if turn.text else written
        made.append(fields)
    return made


def _call(number: int, name: str, arguments: Any) -> dict[str, Any]:
    return {"id": _id_of(number), "type": "function", "function": {"name": name, "arguments": arguments}}


def _id_of(number: int) -> str:
    # Mistral's templates refuse ids of another length.
    return f"call{number:05d}"


def one_call_each(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Several calls of a turn as one after the other, each with its result; None where no turn has several.

    For templates that take one call a turn, such as Llama's.
    """
    if all(len(turn.get("tool_calls", ())) <= 1 for turn in turns):
        return None
    made: list[dict[str, Any]] = []
    for turn in turns:
        calls = turn.get("tool_calls", ())
        if calls:
            made += ({**turn, "content": "", "tool_calls": [call]} for call in calls[:-1])
            made.append({**turn, "tool_calls": calls[-1:]})
        else:
            made.insert(_place_of(turn, made), turn)
    return made


def _place_of(turn: dict[str, Any], made: Sequence[dict[str, Any]]) -> int:
    """Behind the call that it answers, else at the end."""
    wanted = turn.get("tool_call_id")
    for at in range(len(made) - 1, -1, -1) if wanted else ():
        if any(call["id"] == wanted for call in made[at].get("tool_calls", ())):
            return at + 1
    return len(made)


def texts_of(turns: Sequence[Turn]) -> Iterator[str]:
    """All that users and models said in them, as it is and not as JSON writes it."""
    for turn in turns:
        yield from (turn.text, turn.message.name)
        yield from texts_in([[call.name, call.arguments] for call in turn.calls])


def texts_in(value: Any) -> Iterator[str]:
    """All texts in it, names of members among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from texts_in([*value, *value.values()])
    elif isinstance(value, list):
        for each in value:
            yield from texts_in(each)
