"""What a settings model says about itself: rows for the configuration reference, and an example file."""

from __future__ import annotations

import enum
import json
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from serving.settings import ProgramSettings, env_prefix, flatten, section_of

_LISTS = (list, tuple, set, frozenset)
_WORDS = {str: "string", int: "integer", float: "number", bool: "true or false", Path: "path", dict: "table"}


@dataclass(frozen=True, slots=True)
class FieldDoc:
    """One key. `default` is TOML text, or "" where there is none; `env` is "" inside lists and tables.

    `is_present` tells that the key's section exists without being written down.
    """

    key: str
    env: str
    type: str
    default: str
    is_required: bool
    is_present: bool
    description: str


def describe(cls: type[ProgramSettings]) -> list[FieldDoc]:
    """Every key of a program's settings, in the order of the model."""
    return list(_walk(cls, None, "", env_prefix(cls), True))


def _walk(cls: type[BaseModel], values: Any, prefix: str, env: str, is_present: bool) -> Iterator[FieldDoc]:
    for name, field in cls.model_fields.items():
        default = getattr(values, name) if isinstance(values, BaseModel) else _default(field)
        inner, suffix = _inner_section(field.annotation)
        if inner is None or suffix:
            yield FieldDoc(
                key=f"{prefix}{name}",
                env=f"{env}{name.upper()}" if env else "",
                type=type_words(field.annotation),
                default="" if default is None or field.is_required() else toml_value(default),
                is_required=field.is_required(),
                is_present=is_present,
                description=field.description or "",
            )
        if inner is None:
            continue
        inner_env = f"{env}{name.upper()}__" if env and not suffix else ""
        inner_present = is_present and isinstance(default, BaseModel)
        yield from _walk(inner, default, f"{prefix}{name}{suffix}.", inner_env, inner_present)


def _default(field: FieldInfo) -> Any:
    return None if field.is_required() else field.get_default(call_default_factory=True)


def _inner_section(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """The section under a field and how its place in a list or table is written."""
    section = section_of(annotation)
    if section is not None:
        return section, ""
    for kind in flatten(annotation):
        origin, args = typing.get_origin(kind), typing.get_args(kind)
        if origin in _LISTS and args:
            return section_of(args[0]), "[]"
        if origin is dict:
            return section_of(args[1]), ".NAME"
    return None, ""


def type_words(annotation: Any) -> str:
    """A type as a reader of the reference knows it."""
    words = [_one_type(kind) for kind in flatten(annotation)]
    return " or ".join(dict.fromkeys(words))


def _one_type(kind: Any) -> str:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in args)
    if origin is typing.Annotated:
        return type_words(args[0])
    if origin is tuple and Ellipsis not in args:
        return f"[{', '.join(type_words(arg) for arg in args)}]"
    if origin in _LISTS:
        return f"list of {_plural(type_words(args[0]))}" if args else "list"
    if origin is dict:
        return f"table of {_plural(type_words(args[1]))}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "table"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in kind)
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def _plural(words: str) -> str:
    return f"{words}s" if words in _WORDS.values() else f"({words})" if words.startswith("one of") else words


def toml_value(value: Any) -> str:
    """A default as TOML text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, enum.Enum):
        return toml_value(value.value)
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, BaseModel):
        return toml_value(value.model_dump(exclude_unset=True))
    if isinstance(value, dict | types.MappingProxyType):
        return "{ " + ", ".join(f"{k} = {toml_value(v)}" for k, v in value.items()) + " }" if value else "{}"
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return "[" + ", ".join(toml_value(item) for item in items) + "]"
    return json.dumps(str(value), ensure_ascii=False)


def example_toml(cls: type[ProgramSettings]) -> str:
    """A settings file with every key, commented out at its default."""
    lines = [
        f"# Settings of tidegate-{cls.program}. Keys stand at their defaults: remove the # to change one."
    ]
    rows = describe(cls)
    table = ""
    # TOML puts bare keys before the first table.
    for row in sorted(rows, key=lambda row: "." in row.key):
        head, _, name = row.key.rpartition(".")
        if head != table:
            table = head
            lines += ["", _table_header(head, row.is_present)]
        lines.append(f"# {row.description} ({row.type})")
        lines.append(f"# {name} = {row.default or _placeholder(row)}")
    return "\n".join(lines) + "\n"


def _table_header(head: str, is_present: bool) -> str:
    header = f"[[{head[:-2]}]]" if head.endswith("[]") else f"[{head.replace('[]', '')}]"
    return header if is_present else f"# {header}"


def _placeholder(row: FieldDoc) -> str:
    return {"integer": "0", "number": "0.0", "true or false": "false"}.get(row.type, '""')
